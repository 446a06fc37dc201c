"""One forward pass with labels: which units reach which weights."""
