"""Functions that have another meaning in Keras 3 than they had in Keras 2."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="reprune")  # type: ignore[untyped-decorator]
def hard_sigmoid(x: Any) -> Any:
    """What Keras 2 calls `hard_sigmoid`: 0.2 x + 0.5, held between 0 and 1; Keras 3 has x / 6 + 0.5 under that name.

    A saved model that holds it loads wherever `reprune.keras` has been imported.
    """
    return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)
