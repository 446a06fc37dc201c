"""What a trace must know of an activation function: found out by calling it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def is_elementwise(function: Any) -> bool:
    """Whether a function of a tensor treats every element by itself."""
    if function is None:
        return True
    x = np.linspace(-1.5, 1.7, 6, dtype="float32").reshape(1, 6)
    moved = x.copy()
    moved[0, 0] += 0.9
    before, after = _call(function, x), _call(function, moved)
    return before is not None and after is not None and before.shape == x.shape and _equal(before[0, 1:], after[0, 1:])


def keeps_zero(function: Any) -> bool:
    """Whether an elementwise function maps 0 to 0."""
    if function is None:
        return True
    value = _call(function, np.zeros((1, 2), dtype="float32"))
    return value is not None and not value.any()


def _call(function: Any, x: Any) -> Any:
    try:
        return np.asarray(keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(x))), dtype="float64")
    except Exception:
        # Whatever a stranger's function raises on a small matrix: it is not known to be elementwise.
        return None


def _equal(first: Any, second: Any) -> bool:
    return bool(np.allclose(first, second, rtol=1e-6, atol=1e-7, equal_nan=True))  # A logarithm is tried below 0, too.
