"""Builds the VAEs, teachers, judges and references of the packaged worlds."""
