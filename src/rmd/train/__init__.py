"""Training: builds a run from a recipe, trains it, and writes its checkpoints, metrics and pictures."""
