"""Benchmarks: what sampling costs, per stage and end to end."""
