"""Sizes known only when a model runs, in code that computes with them: `reshape(x, (batch * nodes, steps, f))`.

`keras.ops.shape` says None for such a size of a symbolic tensor, and None cannot be multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras


class OpenSize:
    """A size that is not known yet, or what was computed from some.

    Attributes:
        tensor: The symbolic tensor whose first axis is so long, or None.
    """

    def __init__(self, tensor: Any = None) -> None:
        self.tensor = tensor

    def _computed(self, *_: Any) -> OpenSize:
        return OpenSize()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = _computed

    def __index__(self) -> int:
        raise TypeError(
            "a size that is known only when the model runs is needed as a number here: it can be followed through "
            "products and sums into keras.ops.reshape (one of them per shape) and keras.ops.zeros, and nowhere else"
        )

    __int__ = __index__


@contextmanager
def open_sizes() -> Iterator[None]:
    """While this is entered, `keras.ops.shape` gives sizes to compute with, and `keras.ops.reshape` takes them."""
    shape, reshape = keras.ops.shape, keras.ops.reshape

    def shape_of(x: Any) -> Any:
        sizes = shape(x)
        if not isinstance(x, keras.KerasTensor):
            return sizes
        return tuple(OpenSize(None if axis else x) if size is None else size for axis, size in enumerate(sizes))

    def reshaped(x: Any, newshape: Any) -> Any:
        if isinstance(newshape, Sequence) and sum(isinstance(size, OpenSize) for size in newshape) == 1:
            # All other sizes are known, and so it is.
            newshape = tuple(-1 if isinstance(size, OpenSize) else size for size in newshape)
        return reshape(x, newshape)

    keras.ops.shape, keras.ops.reshape = shape_of, reshaped
    try:
        yield
    finally:
        keras.ops.shape, keras.ops.reshape = shape, reshape
