"""Zeros for every sequence of a batch whose size is not known yet: the states with which cells in a loop begin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import keras.src.ops

from reprune.keras.tracing.open_sizes import OpenSize


@keras.saving.register_keras_serializable(package="reprune")
class BatchZeros(keras.layers.Layer):  # type: ignore[misc]
    """`keras.ops.zeros((batch, *sizes))`, the batch being as large as that of its input.

    Stands for that call, and for `cell.get_initial_state(batch)`, in the graph of a subclassed model. A saved model
    that holds one loads wherever `reprune.keras` has been imported.

    Args:
        sizes: The other axes, units last.
        options: Of a Keras layer.
    """

    def __init__(self, sizes: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        self.sizes = tuple(sizes)

    def call(self, x: Any) -> Any:
        """Zeros for every sequence of `x`."""
        return keras.ops.zeros((keras.ops.shape(x)[0], *self.sizes), dtype=self.compute_dtype)

    def compute_output_spec(self, x: Any) -> Any:
        """Shape and type of the zeros."""
        return keras.KerasTensor((x.shape[0], *self.sizes), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """What it was made with."""
        return {**super().get_config(), "sizes": self.sizes}


@contextmanager
def zeros_of(inputs: Any) -> Iterator[None]:
    """While this is entered, zeros for a batch of unknown size become layers that read it from symbolic inputs."""
    tensor = keras.tree.flatten(inputs)[0]
    plain = keras.ops.zeros
    made: list[BatchZeros] = []

    def zeros(shape: Any, dtype: Any = None) -> Any:
        batch, *sizes = shape if isinstance(shape, (tuple, list)) else (shape,)
        if not any(size is None or isinstance(size, OpenSize) for size in (batch, *sizes)):
            return plain(shape, dtype)
        source = tensor if batch is None else getattr(batch, "tensor", None)
        if source is None or not sizes or any(size is None or isinstance(size, OpenSize) for size in sizes):
            raise ValueError(f"zeros of shape {shape} are wider than is known before the model runs")
        # Counted from 0 for every model, so that a plan finds them in another process.
        made.append(BatchZeros(sizes, dtype=dtype, name=f"zeros_{len(made)}"))
        return made[-1](source)

    # Keras itself looks it up in another module than its users.
    places = (keras.ops, keras.src.ops)
    for place in places:
        place.zeros = zeros
    try:
        yield
    finally:
        for place in places:
            place.zeros = plain
