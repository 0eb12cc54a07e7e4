"""From a model and prompts to pictures: pipelines, albums and timing."""
