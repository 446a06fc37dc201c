"""A `Bidirectional` whose directions may have different sizes."""

from __future__ import annotations

from typing import Any

import keras

Shape = Any


@keras.saving.register_keras_serializable(package="reprune")
class RaggedBidirectional(keras.layers.Bidirectional):  # type: ignore[misc]
    """`keras.layers.Bidirectional` that knows its shapes when the two directions differ in size.

    Keras's own computes with such layers, but announces shapes as if both were as large as the forward one, so that
    the layers behind it are built wrong. Everything else is inherited. A saved model that holds one loads wherever
    `reprune.keras` has been imported.
    """

    def compute_output_shape(self, sequences_shape: Shape, initial_state_shape: Shape = None) -> Shape:
        """Shapes of the outputs: of each direction, or of both side by side, and of the states."""
        forward, forward_states = self._shapes(self.forward_layer, sequences_shape)
        backward, backward_states = self._shapes(self.backward_layer, sequences_shape)
        if self.merge_mode is None:
            outputs: tuple[Shape, ...] = (forward, backward)
        elif self.merge_mode == "concat":
            outputs = ((*forward[:-1], forward[-1] + backward[-1]),)
        else:
            outputs = (forward,)
        if self.return_state or self.merge_mode is None:
            return (*outputs, *forward_states, *backward_states)
        return outputs[0]

    def _shapes(self, layer: Any, sequences_shape: Shape) -> tuple[Shape, list[Shape]]:
        shapes = layer.compute_output_shape(sequences_shape)
        if not self.return_state:
            return tuple(shapes), []
        return tuple(shapes[0]), [tuple(shape) for shape in shapes[1:]]
