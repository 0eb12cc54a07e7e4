"""The one way from a model to numbers: metrics, rows, statistics and the demo."""
