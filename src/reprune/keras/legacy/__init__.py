"""Models from files, those of Keras 2 included where Keras 3 can take them."""

from reprune.keras.legacy.files import load_model

__all__ = ["load_model"]
