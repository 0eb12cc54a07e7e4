"""The page of `rmd ui`: try a student beside its teacher, compare students blind, watch a run, and open tables.

What the page does is in plain functions, which need no gradio; only the modules `page`, `tabs` and `serving` import it.
"""
