"""The mathematics of the paper: schedules, plans, crossings, sampling, losses, random numbers and metrics."""
