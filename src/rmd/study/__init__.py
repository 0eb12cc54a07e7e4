"""Blind preference studies of pictures or clips: design, server, analysis and export (paper, App. C)."""
