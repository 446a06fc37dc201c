"""reprune: structured pruning for recurrent networks."""
