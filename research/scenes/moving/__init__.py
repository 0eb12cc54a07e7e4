"""Builds the parts of the world of moving scenes."""
