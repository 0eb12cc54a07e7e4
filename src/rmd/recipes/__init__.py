"""Recipes: the settings of a run as YAML files that extend one another, checked before any weight is loaded."""
