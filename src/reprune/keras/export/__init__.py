"""Keras models in the files that devices run."""

from reprune.keras.export.formats import export

__all__ = ["export"]
