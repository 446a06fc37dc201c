"""A Keras model ready to be written: its inputs, their free sizes, its states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from reprune.keras.export.states import LayerStates

Axes = tuple[int | str, ...]


@dataclass(frozen=True)
class Job:
    """A model and what its file takes.

    Attributes:
        model: The model.
        example: Its example, nested as the model takes it.
        arrays: The inputs of the file: the example's arrays, then the states.
        names: Their names.
        axes: Their axes: a number where the size is fixed, a name where it is free.
        states: The states that recurrent layers keep, and the file takes and returns.
        carried: States that the model itself takes and returns: positions of inputs and outputs.
        opset: The operator set of an ONNX file, or None for the usual one.
    """

    model: Any
    example: Any
    arrays: Sequence[Any]
    names: Sequence[str]
    axes: Sequence[Axes]
    states: LayerStates
    carried: Sequence[tuple[int, int]] = ()
    opset: int | None = None

    def with_fixed_steps(self) -> Job:
        """The same with all sizes fixed at the example's but the batch; itself if none other is free."""
        axes = [
            tuple(size if size == "batch" or isinstance(size, int) else array.shape[k] for k, size in enumerate(sizes))
            for sizes, array in zip(self.axes, self.arrays, strict=True)
        ]
        return self if axes == list(self.axes) else replace(self, axes=axes)

    @property
    def batch(self) -> int:
        """Rows of the example."""
        return int(self.arrays[0].shape[0])

    def call(self, arrays: Sequence[Any]) -> list[Any]:
        """What the file is to return: the model's outputs, then the states after the call."""
        count = len(arrays) - len(self.states.names)
        inputs = keras.tree.pack_sequence_as(self.example, list(arrays[:count]))
        outputs, states = self.states.run(self.model, inputs, list(arrays[count:]))
        return [*outputs, *states]

    def pairs(self, outputs: int) -> list[tuple[int, int]]:
        """Every state as the position of its input and that of its output, of so many outputs."""
        count = len(self.states.names)
        kept = range(-count, 0)
        return [*self.carried, *((len(self.arrays) + back, outputs + back) for back in kept)]

    def fed_back(self, arrays: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        """The inputs of the next call: those of the last one, with the states that it returned."""
        following = list(arrays)
        for place, position in self.pairs(len(outputs)):
            following[place] = np.asarray(outputs[position])
        return following

    def function(self) -> Any:
        """The same as a `tf.function` of flat inputs."""
        import tensorflow as tf

        specs = [
            tf.TensorSpec(
                [None if isinstance(size, str) else size for size in axes], array.dtype, name=f"input_{index}"
            )
            for index, (axes, array) in enumerate(zip(self.axes, self.arrays, strict=True))
        ]
        return tf.function(lambda *flat: self.call(flat), input_signature=specs)

    def fitted(self, index: int, array: Any, rows: Any) -> Any:
        """Some rows of an input, fixed sizes as the file has them."""
        for axis, size in enumerate(self.axes[index]):
            if axis == 0:
                array = np.take(array, rows % array.shape[0], 0)
            elif not isinstance(size, str) and array.shape[axis] != size:
                array = np.take(array, np.arange(size) % array.shape[axis], axis)
        return array.astype(self.arrays[index].dtype)

    def resized(self, longer: int) -> list[Any]:
        """The inputs with free sizes other by so many steps and more, and by one row."""
        sizes: dict[str, int] = {}
        for axes, array in zip(self.axes, self.arrays, strict=True):
            for name, size in zip(axes, array.shape, strict=True):
                if isinstance(name, str) and name not in sizes:
                    # Each by a number of its own, which tells whose size an output has.
                    step = longer + int(np.sign(longer)) * len(sizes.keys() - {"batch"})
                    sizes[name] = max(1, size + (step if name != "batch" else int(np.sign(longer))))
        resized = []
        for axes, array in zip(self.axes, self.arrays, strict=True):
            for axis, name in enumerate(axes):
                if isinstance(name, str):
                    array = np.take(array, np.arange(sizes[name]) % array.shape[axis], axis)
            resized.append(array)
        return resized
