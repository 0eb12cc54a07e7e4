"""The trainer: loop, state, checkpoints, tracking."""
