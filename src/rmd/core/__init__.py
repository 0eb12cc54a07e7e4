"""The mathematics of the paper: noise schedules, step plans, crossings, sampling, losses, random numbers and metrics."""
