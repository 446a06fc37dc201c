"""The mathematics of pruning on plain arrays: no deep-learning framework is imported here."""
