"""The paper's tables in miniature: a grid of settings and seeds under one budget, and what it shows."""
