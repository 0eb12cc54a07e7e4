"""Fills the results of `rmd compare` into docs/findings.md."""
