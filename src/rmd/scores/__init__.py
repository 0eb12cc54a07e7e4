"""Scores of pictures by published networks: HPSv2, the LAION aesthetic score, CLIP scores and their like."""
