"""Pruning while a Keras model trains, and teaching the pruned model by the dense one."""
