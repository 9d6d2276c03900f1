"""The training loop and what belongs to it: objectives, optimizer, checkpoints, held-out loss, charts."""
