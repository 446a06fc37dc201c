"""What a trace must know of an activation function: found out by calling it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def is_elementwise(function: Any) -> bool:
    """Whether a function of a tensor treats every element of a row by itself."""
    return keeps_apart(function, 2, 1)


def keeps_apart(function: Any, rank: int, axis: int) -> bool:
    """Whether a function of tensors of a rank treats what lies along an axis position by position."""
    if function is None:
        return True
    shape = [2] * rank
    shape[axis] = 6
    x = np.linspace(-1.5, 1.7, 6 * 2 ** (rank - 1), dtype="float32").reshape(shape)
    moved = x.copy()
    np.moveaxis(moved, axis, 0)[0] += 0.9
    before, after = _call(function, x), _call(function, moved)
    if before is None or after is None or before.shape != x.shape:
        return False
    return _equal(np.moveaxis(before, axis, 0)[1:], np.moveaxis(after, axis, 0)[1:])


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
