"""Applying a plan to a Keras model: rebuild it smaller, or silence units in a full-size copy."""
