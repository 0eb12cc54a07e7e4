"""From models to numbers: contenders are sampled, judged by their world, and measured by registered metrics."""
