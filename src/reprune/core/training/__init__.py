"""Pruning while a model trains, as arithmetic: gates, penalties, courses, shrinking."""
