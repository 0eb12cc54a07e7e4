"""The world of still scenes: captions, renderer and judge."""
