"""The mathematics of cross-resolution distillation: noise, plans, crossings, sampling, losses and randomness."""
