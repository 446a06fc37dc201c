"""Statistics that need more than responses: moments by class from labels, gradients of a loss."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Any

import keras
import numpy as np

from reprune.core.errors import StatisticsError
from reprune.core.evidence.class_moments import ClassMoments
from reprune.core.evidence.passes import Labels, Loss
from reprune.core.layers import Structure
from reprune.keras.calibration.gradients import pullback
from reprune.keras.calibration.responses import Probe
from reprune.keras.tracing.graph import ModelGraph, array, graph_of
from reprune.keras.tracing.record import Forward, captured


def observe_classes(
    model: Any, structure: Structure, batches: Iterable[Any], labels: Labels, forward: Forward | None = None
) -> dict[str, ClassMoments]:
    """Run the model over labelled batches and gather the responses of each class; padding never counts.

    Raises:
        StatisticsError: When labels and sequences of a batch differ in number.
    """
    moments = {name: ClassMoments(name, layer.units) for name, layer in structure.layers.items()}
    batches = iter(batches)
    first = next(batches)
    probe = Probe(graph_of(model, captured(model, first, forward)), structure)
    for batch in chain([first], batches):
        members = _members(labels(batch))
        for key, rows, sequences, size, *_ in probe.responses(captured(model, batch, forward)):
            assert isinstance(key, str)
            if size != len(members):
                raise StatisticsError(
                    f"{key}: {len(members)} labels for a batch of {size} sequences: give one for each sequence."
                )
            moments[key].update(rows, members[sequences])
    return moments


def _members(labels: Any) -> Any:
    found = array(labels)
    if found.ndim == 2 and found.shape[1] > 1:
        return found
    numbers = found.reshape(-1).astype(np.int64)
    return np.eye(int(numbers.max()) + 1)[numbers]


def loss_gradients(graph: ModelGraph, model: Any, batches: Iterable[Any], loss: Loss) -> dict[str, Any]:
    """Gradient of the mean loss over all batches with respect to every weight.

    Raises:
        StatisticsError: When the loss is no scalar with a gradient.
    """
    weights = {name: weight for name, weight in graph.weights().items() if _is_float(weight)}
    totals = {name: np.zeros(tuple(weight.shape)) for name, weight in weights.items()}
    count = 0
    with keras.StatelessScope():
        for batch in batches:
            count += 1
            _, pull = pullback(partial(_losses, loss, model, batch), list(weights.values()))
            for name, gradient in zip(weights, pull([1.0]), strict=True):
                totals[name] += 0 if gradient is None else gradient
    # A loss that the model did not compute has no gradient, or, on JAX, one of zeros.
    if not any(total.any() for total in totals.values()):
        raise StatisticsError(_NO_LOSS)
    return {name: total / count for name, total in totals.items()}


_NO_LOSS = (
    "loss= did not return a scalar tensor with a gradient: return the mean loss of the batch, computed by the model, "
    "such as lambda model, batch: keras.ops.mean(keras.losses.sparse_categorical_crossentropy(batch[1], "
    "model(batch[0])))."
)


def _losses(loss: Loss, model: Any, batch: Any) -> list[Any]:
    value = loss(model, batch)
    if not keras.ops.is_tensor(value) or int(np.prod(value.shape)) != 1 or not _is_float(value):
        raise StatisticsError(_NO_LOSS)
    return [keras.ops.reshape(value, ())]


def _is_float(value: Any) -> bool:
    return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype)))
