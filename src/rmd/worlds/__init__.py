"""Scenes: the embedded default. Captioned procedural pictures, their tiny packaged teacher and its judge."""
