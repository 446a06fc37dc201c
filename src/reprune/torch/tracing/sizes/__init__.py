"""Sizes that a model's own code takes from its attributes."""
