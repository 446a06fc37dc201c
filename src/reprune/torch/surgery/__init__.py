"""Applying a plan to a PyTorch model: cut it, silence units in a full-size copy, and rehearse both."""
