"""Worlds: captioned procedural scenes with a renderer, packaged teachers and a judge that scores samples."""
