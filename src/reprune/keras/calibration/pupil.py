"""What a Keras model answers, and the pruned model as something whose consumers can be refitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from reprune.core.answers import Answers
from reprune.core.gauss_newton import Refitted, Seen, Tensors, last_consumers
from reprune.core.layers import Consumer, Structure
from reprune.keras.calibration.gradients import pullback
from reprune.keras.calibration.responses import Probe
from reprune.keras.tracing.graph import ModelGraph, array, flat_inputs, graph_of
from reprune.keras.tracing.record import Forward, captured, states_kept

EAGER = 8
"""Calls from which on it pays to let the backend compile the model."""


def answering(model: Any, forward: Forward | None) -> Callable[[Any], list[NDArray[Any]]]:
    """The model as a function from a batch to its output tensors."""
    calls = 0

    def run(batch: Any) -> list[NDArray[Any]]:
        nonlocal calls
        calls += 1
        example = captured(model, batch, forward)
        graph = graph_of(model, example)
        inputs = flat_inputs(graph.root, example)
        with states_kept(graph):
            if calls <= EAGER or any(value is None for value in inputs):
                return [_widened(array(value)) for value in _outputs(graph, inputs)]
            given = keras.tree.pack_sequence_as(graph.root.input, inputs)
            return [_widened(np.asarray(value)) for value in keras.tree.flatten(graph.root.predict_on_batch(given))]

    return run


def made_by_sigmoid(graph: ModelGraph) -> list[int]:
    """Which of the output tensors hold numbers that a sigmoid made."""
    makers = [tensor._keras_history.operation for tensor in graph.root.outputs]
    return [place for place, maker in enumerate(makers) if _is_sigmoid(maker)]


def _is_sigmoid(operation: Any) -> bool:
    inner = operation.layer if isinstance(operation, keras.layers.TimeDistributed) else operation
    return getattr(inner, "activation", None) is keras.activations.sigmoid or type(inner).__name__ == "Sigmoid"


class Pupil:
    """A pruned model whose consumers are refitted. See `core.gauss_newton.Pupil`.

    It has a few batches to learn from: every pass runs the whole model, step by step.

    Args:
        model: The pruned model.
        structure: What a trace of it would find.
        answers: The dense model's.
        forward: Replaces `model(batch)`.
    """

    def __init__(self, model: Any, structure: Structure, answers: Answers, forward: Forward | None) -> None:
        self._answers, self._run = answers, answering(model, forward)
        self._examples = {place: captured(model, answers.batches[place], forward) for place in answers.some}
        self._graph = graph_of(model, self._examples[0])
        self._variables = self._graph.weights()
        probe = Probe(self._graph)
        found = last_consumers(structure, self._variables, partial(self._responses, probe))
        self.weights = self._observed(found)

    def _responses(self, probe: Probe, changed: Sequence[Consumer]) -> list[tuple[str, float]]:
        """The size of the layers' responses to one batch, while some weights are halved."""
        held = self.read([consumer.tensor for consumer in changed])
        try:
            self.write({name: value / 2 for name, value in held.items()})
            return [
                (found.key, float(np.square(found.rows, dtype=np.float64).sum()))
                for found in probe.responses(self._examples[0])
                if isinstance(found.key, str)
            ]
        finally:
            self.write(held)

    def _observed(self, consumers: Sequence[Consumer]) -> list[Refitted]:
        """The consumers, with what they read."""
        seen = Seen(consumers, {name: tuple(variable.shape) for name, variable in self._variables.items()})
        if consumers:
            axes = {(consumer.tensor, consumer.axis) for consumer in consumers}
            probe = Probe(self._graph, consumers)
            for example in self._examples.values():
                for found in probe.responses(example):
                    if found.key in axes:
                        seen.add(found.key[0], found.rows)
        return seen.weights()

    def read(self, names: Sequence[str]) -> Tensors:
        """Weights by name."""
        return {name: _widened(array(self._variables[name])) for name in names}

    def write(self, tensors: Tensors) -> None:
        """Set weights."""
        for name, values in tensors.items():
            self._variables[name].assign(values.astype(self._variables[name].dtype))

    def divergence(self) -> float:
        """Mean divergence of the rows to judge by."""
        batches = self._answers.batches
        return self._answers.divergence(lambda place: self._run(batches[place]), self._examples, "judged")

    def gradients(self, names: Sequence[str], rng: np.random.Generator) -> Iterator[tuple[Tensors, Tensors]]:
        """Gradients of the mean divergence of the rows to fit, and of its random projection, batch by batch."""
        variables = [self._variables[name] for name in names]
        for place, example in self._examples.items():
            inputs = flat_inputs(self._graph.root, example)
            with states_kept(self._graph):
                outputs, pull = pullback(partial(_outputs, self._graph, inputs), variables)
                found = [_widened(array(output)) for output in outputs]
                given = {which: parts for which, *parts in self._answers.cotangents(place, found, rng)}
                pulled = [
                    pull([given[which][kind] if which in given else 0 * out for which, out in enumerate(found)])
                    for kind in range(2)
                ]
            gradient, projected = (
                {
                    name: np.zeros(tuple(variable.shape)) if value is None else value.astype("float64")
                    for name, variable, value in zip(names, variables, values, strict=True)
                }
                for values in pulled
            )
            yield gradient, projected


def _widened(values: NDArray[Any]) -> NDArray[Any]:
    """Half precision in single: exponentials overflow in it, and NumPy knows only one kind of it."""
    half = keras.backend.is_float_dtype(keras.backend.standardize_dtype(values.dtype)) and values.dtype.itemsize < 4
    return values.astype("float32") if half else values


def _outputs(graph: ModelGraph, inputs: list[Any]) -> list[Any]:
    return list(keras.tree.flatten(graph.root(keras.tree.pack_sequence_as(graph.root.input, inputs), training=False)))
