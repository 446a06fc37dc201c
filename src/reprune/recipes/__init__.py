"""Whole jobs, top to bottom: train, prune, fine-tune, evaluate."""
