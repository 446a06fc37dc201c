"""How much the model's output depends on what its consumers compute, as in `reprune.torch.calibration.importance`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from reprune.core.evidence.readings import Axis, random_signs
from reprune.core.layers import Consumer
from reprune.keras.calibration.gradients import vjp
from reprune.keras.tracing.compiled import Compiled, Runner, loosely, shortened
from reprune.keras.tracing.graph import ModelGraph, array

SEQUENCES, STEPS = 32, 64
"""Of a batch, as many sequences and their first time steps are looked at, if the model runs on so few."""


class OutputImportance:
    """Sensitivity of the model's output to what its consumers compute.

    Args:
        graph: The model's graph.
        consumers: The weights that read units.
    """

    def __init__(self, graph: ModelGraph, consumers: Iterable[Consumer]) -> None:
        self._run = Runner(graph, loosely(graph))
        places = {name: place for place, name in enumerate(graph.weights())}
        self._axes: dict[Axis, int] = {(c.tensor, c.axis): places[c.tensor] for c in consumers}
        self._reached: list[Axis] = []
        self._squares = Compiled(self._traced)

    def __call__(self, inputs: Sequence[Any], *, draws: int, seed: int) -> dict[Axis, Any]:
        """For the tensor and axis of each consumer, the squared gradient summed over that axis: one number per output.

        Args:
            inputs: One batch, as the graph takes it.
            draws: Random projections of the output that are averaged.
            seed: Their seed.

        Returns:
            Sums, in double precision. Empty when the output has no gradient.
        """
        rng = np.random.default_rng(seed)
        total: dict[Axis, Any] = {}
        if any(value is None for value in inputs):
            return total
        try:
            inputs, outputs = shortened(self._run, inputs, SEQUENCES, STEPS)
            shapes = [tuple(out.shape) for out in _floats(outputs)]
            for _ in range(draws if shapes else 0):
                signs = [random_signs(rng, shape).astype("float32") for shape in shapes]
                found = self._squares(self._run.values(), signs, inputs)
                for key, squares in zip(self._reached, found, strict=True):
                    total[key] = total.get(key, 0.0) + array(squares).astype("float64") / draws
        except Exception:
            # Each backend has its own errors for operations of the user's that have no gradient.
            return {}
        return total

    def _traced(self, values: list[Any], signs: list[Any], inputs: list[Any]) -> list[Any]:
        watched = sorted(set(self._axes.values()))

        def outputs(given: list[Any]) -> list[Any]:
            put = dict(zip(watched, given, strict=True))
            return _floats(self._run.within([put.get(place, value) for place, value in enumerate(values)], inputs))

        found = vjp(outputs, [values[place] for place in watched], signs)
        gradients = dict(zip(watched, found, strict=True))
        self._reached = [key for key, place in self._axes.items() if gradients[place] is not None]
        return [_squares(gradients[self._axes[key]], key[1]) for key in self._reached]


def _squares(gradient: Any, axis: int) -> Any:
    wide = keras.backend.result_type(gradient.dtype, "float32")
    return keras.ops.sum(keras.ops.square(keras.ops.cast(gradient, wide)), axis)


def _floats(outputs: Iterable[Any]) -> list[Any]:
    return [out for out in outputs if keras.backend.is_float_dtype(keras.backend.standardize_dtype(out.dtype))]
