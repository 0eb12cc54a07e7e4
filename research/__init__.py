"""The code that made the packaged weights. It runs from a checkout, and the package never imports it."""
