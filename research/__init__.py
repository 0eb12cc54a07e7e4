"""How the packaged weights were made; run from a checkout, and never imported by the package."""
