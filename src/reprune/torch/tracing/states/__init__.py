"""States that are handed in and out, or kept by a module."""
