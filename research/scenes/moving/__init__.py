"""Training of the models of the world of moving scenes, and computation of its references."""
