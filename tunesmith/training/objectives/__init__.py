"""What is optimised. Each file is one choice: a batch from rows, and the loss of a batch."""

from tunesmith.training.objectives.sft import Sft

Objective = Sft  # a union once there is a second choice
