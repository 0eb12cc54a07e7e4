"""Training of the VAEs, teachers and judges of the packaged worlds, and computation of their references."""
