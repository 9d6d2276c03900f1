"""What fits and how long it takes, before anything is loaded."""
