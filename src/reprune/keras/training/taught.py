"""A small model that learns in `fit` from its labels and from a dense model's answers at once."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
from keras import ops

from reprune.keras.calibration.pupil import answering, made_by_sigmoid
from reprune.keras.tracing.graph import graph_of
from reprune.keras.training.distill import Comparison


class Taught(keras.Model):  # type: ignore[misc]
    """A small model to be compiled and fitted as ever; its loss is shared with the dense model's answers.

    The loss is (1 − share) of what `compile` says, and `share` of the divergence from what the dense model answers to
    the same inputs, a mean over the rows of its outputs. What is fitted are the small model's own weights.

    Args:
        small: The model that learns.
        dense: The model that it was pruned from; it answers as in use and stays as it is.
        example: A batch of inputs, which tells how outputs are compared.
        share: Of the dense model's answers in what is learned, from 0 to 1.
        divergence: How outputs are compared: `kl`, `bce`, `mse` or `cosine`; what they look like by default.

    Example:
        >>> taught = Taught(result.model, dense, x[:32], share=0.5)               # doctest: +SKIP
        >>> taught.compile("adam", "sparse_categorical_crossentropy")             # doctest: +SKIP
        >>> taught.fit(x, y, epochs=5)                                            # doctest: +SKIP
    """

    def __init__(self, small: Any, dense: Any, example: Any, share: float = 0.5, divergence: str | None = None) -> None:
        super().__init__(name=f"taught_{small.name}")
        self.small = small
        self._share = share
        # Within a function: an attribute would make the dense model a part of this one, and its weights learn.
        self._answers = partial(_outputs, dense)
        found, wanted = answering(small, None)(example), answering(dense, None)(example)
        self._compare = Comparison(found, wanted, divergence, made_by_sigmoid(graph_of(dense, example)))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The small model's outputs."""
        return self.small(inputs, training=training)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Both parts of the loss, shared."""
        own = super().compute_loss(x, y, y_pred, sample_weight, training)
        answers = [ops.stop_gradient(value) for value in self._answers(x)]
        return (1 - self._share) * own + self._share * self._compare(keras.tree.flatten(y_pred), answers)


def _outputs(model: Any, inputs: Any) -> list[Any]:
    return list(keras.tree.flatten(model(inputs, training=False)))
