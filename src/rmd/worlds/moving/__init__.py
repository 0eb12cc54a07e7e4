"""Moving scenes: short captioned clips of one object with a known path, and exact measures of its motion."""
