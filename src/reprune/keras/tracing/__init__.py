"""The graph of a Keras model, walked with labels: which units reach which weights."""
