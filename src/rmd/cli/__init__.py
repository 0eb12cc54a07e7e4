"""The `rmd` command: one file a verb, put together in `app.py`."""
