"""Pruning while a PyTorch model trains, and teaching the pruned model by the dense one."""
