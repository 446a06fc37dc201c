"""How much the model's output depends on what its consumers compute, as in `reprune.torch.calibration.importance`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from reprune.core.evidence.readings import Axis, random_signs
from reprune.core.layers import Consumer
from reprune.keras.calibration.gradients import pullback
from reprune.keras.tracing.graph import ModelGraph
from reprune.keras.tracing.record import states_kept


def output_importance(
    graph: ModelGraph, consumers: Iterable[Consumer], inputs: Any, *, draws: int = 4, seed: int = 0
) -> dict[Axis, Any]:
    """Sensitivity of the model's output to each consumer's outputs, on one batch.

    Args:
        graph: The model's graph.
        consumers: The weights that read units.
        inputs: One batch, as the graph takes it.
        draws: Random projections of the output that are averaged.
        seed: Their seed.

    Returns:
        For the tensor and axis of each consumer, the squared gradient summed over that axis: one number per output.
        Empty when the output has no gradient.
    """
    weights = graph.weights()
    axes = {(consumer.tensor, consumer.axis): weights[consumer.tensor] for consumer in consumers}

    def outputs() -> list[Any]:
        found = keras.tree.flatten(graph.root(keras.tree.pack_sequence_as(graph.root.input, inputs), training=False))
        return [out for out in found if keras.backend.is_float_dtype(keras.backend.standardize_dtype(out.dtype))]

    rng = np.random.default_rng(seed)
    total: dict[Axis, Any] = {}
    with states_kept(graph):
        try:
            found, pull = pullback(outputs, list(axes.values()))
            for _ in range(draws if found else 0):
                gradients = pull([random_signs(rng, tuple(out.shape)) for out in found])
                for key, gradient in zip(axes, gradients, strict=True):
                    if gradient is not None:
                        squares = np.square(gradient.astype("float64")).sum(key[1])
                        total[key] = total.get(key, 0.0) + squares / draws
        except Exception:
            # Each backend has its own errors for operations of the user's that have no gradient.
            return {}
    return total
