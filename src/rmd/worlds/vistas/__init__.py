"""Vistas: objects in the air above a landscape; captions, renderer and judge."""
