"""Still scenes: captions, renderer and judge."""
