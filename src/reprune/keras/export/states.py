"""For export: the states of Keras' recurrent layers as inputs and outputs, of stateful layers or to run in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from reprune.core.exporting import ExportError
from reprune.keras.tracing.configuration import sublayers


class Slot:
    """Stands for a state variable of a layer: gives the value that the file's input has, and takes the new one."""

    def __init__(self, value: Any) -> None:
        self.value, self.read, self.shape = value, False, value.shape

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> Any:
        """The value, for TensorFlow."""
        import tensorflow as tf

        self.read = True
        return tf.convert_to_tensor(self.value, dtype=dtype, name=name)

    def assign(self, value: Any) -> None:
        """What a stateful layer does at the end of a call."""
        self.value = value


class LayerStates:
    """The states of a model's recurrent layers, in the order of the layers.

    Attributes:
        names: A name for each state: `lstm.0`, or `rnn.1.0` where a layer nests them.
        sizes: Units of each.
        batch: The batch that stateful layers insist on, or None.
    """

    def __init__(self, model: Any, *, streaming: bool) -> None:
        layers = [layer for layer in recurrent_layers(model) if layer.stateful or streaming]
        self._layers = layers
        self.names: list[str] = []
        self.sizes: list[int] = []
        for layer in layers:
            units = keras.tree.flatten(layer.cell.state_size)
            self.names += [f"{layer.name}.{index}" for index in range(len(units))]
            self.sizes += [int(size) for size in units]
        held = [keras.tree.flatten(layer.states)[0] for layer in layers if layer.stateful and layer.states is not None]
        self.batch = int(held[0].shape[0]) if held else None
        backward = [layer.name for layer in layers if layer.go_backwards]
        if streaming and (backward or not layers):
            reason = f"{backward} read backwards as well" if backward else "the model has no recurrent layer"
            raise ExportError(f"streaming=True: {reason}, so the model cannot run chunk by chunk.")

    def zeros(self, batch: int) -> list[Any]:
        """The states at the beginning."""
        return [np.zeros((batch, size), np.float32) for size in self.sizes]

    def run(self, model: Any, inputs: Any, states: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The model's outputs and the states after the call, nested ones flattened."""
        with self._given(states) as slots:
            outputs = keras.tree.flatten(model(inputs, training=False))
        return outputs, [slot.value for slot in slots]

    @contextmanager
    def _given(self, states: Sequence[Any]) -> Iterator[list[Slot]]:
        slots, before, rest = [], [], list(states)
        try:
            for layer in self._layers:
                form = layer.cell.state_size
                count = len(keras.tree.flatten(form))
                own, rest = [Slot(state) for state in rest[:count]], rest[count:]
                before.append((layer, layer.states, layer.stateful, layer._expected_batch_size))
                nested = keras.tree.pack_sequence_as(form, own) if keras.tree.is_nested(form) else own
                # Past Keras' tracker, which takes variables only.
                _set(layer, nested, True, None)
                slots += own
            yield slots
        finally:
            for layer, held, stateful, expected in before:
                _set(layer, held, stateful, expected)


def _set(layer: Any, states: Any, stateful: bool, batch: Any) -> None:
    for name, value in (("states", states), ("stateful", stateful), ("_expected_batch_size", batch)):
        object.__setattr__(layer, name, value)


def recurrent_layers(layer: Any) -> Iterator[Any]:
    """The recurrent layers inside a model or layer."""
    for part in sublayers(layer):
        if isinstance(part, keras.layers.RNN):
            yield part
        else:
            yield from recurrent_layers(part)
