"""From a checkpoint to a package that is proven to behave like what was trained."""
