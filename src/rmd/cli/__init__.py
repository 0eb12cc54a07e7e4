"""The `rmd` command: one module per verb, which `app.py` puts together."""
