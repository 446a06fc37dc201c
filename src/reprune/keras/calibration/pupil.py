"""What a Keras model answers, and the pruned model as something whose consumers can be refitted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from reprune.core.answers.answers import Answers
from reprune.core.answers.gauss_newton import Refitted, Seen, Tensors, last_consumers
from reprune.core.layers import Consumer, Structure
from reprune.core.plan import Plan
from reprune.keras.calibration.gradients import pullback
from reprune.keras.calibration.readers import read_in, readers
from reprune.keras.calibration.responses import Probe
from reprune.keras.surgery.apply import masked_weights
from reprune.keras.tracing.compiled import Runner
from reprune.keras.tracing.configuration import sublayers
from reprune.keras.tracing.graph import ModelGraph, array, flat_inputs, graph_of, widened
from reprune.keras.tracing.record import Forward, Trace, captured


def answering(model: Any, forward: Forward | None) -> Callable[[Any], list[NDArray[Any]]]:
    """The model as a function from a batch to its output tensors."""
    known: list[tuple[ModelGraph, Runner]] = []

    def run(batch: Any) -> list[NDArray[Any]]:
        example = captured(model, batch, forward)
        if not known:
            graph = graph_of(model, example)
            known.append((graph, Runner(graph)))
        graph, runner = known[0]
        return _arrays(runner(flat_inputs(graph.root, example)))

    return run


def masked_answers(
    found: Trace, model: Any, plan: Plan | None, forward: Forward | None
) -> Callable[[Any], list[NDArray[Any]]]:
    """What the masked model of a plan answers, or the dense one: one compiled function serves all plans of a trace."""
    masked = {} if plan is None else masked_weights(found.graph, plan)
    weights = {name: keras.ops.convert_to_tensor(value) for name, value in masked.items()}

    def run(batch: Any) -> list[NDArray[Any]]:
        return _arrays(found.run(flat_inputs(found.graph.root, captured(model, batch, forward)), weights))

    return run


def made_by_sigmoid(graph: ModelGraph) -> list[int]:
    """Which of the output tensors hold numbers that a sigmoid made."""
    makers = [tensor._keras_history.operation for tensor in graph.root.outputs]
    return [place for place, maker in enumerate(makers) if _is_sigmoid(maker)]


def _is_sigmoid(operation: Any) -> bool:
    inner = operation.layer if isinstance(operation, keras.layers.TimeDistributed) else operation
    return getattr(inner, "activation", None) is keras.activations.sigmoid or type(inner).__name__ == "Sigmoid"


class Pupil:
    """A pruned model whose consumers are refitted. See `core.answers.gauss_newton.Pupil`.

    Only the head of the model is run: what comes after the last recurrent layers, whose answers are kept. A model that
    cannot be cut there, because its head hands on masks say, has nothing that could be refitted.

    Args:
        model: The pruned model.
        structure: What a trace of it would find.
        answers: The dense model's.
        forward: Replaces `model(batch)`.
    """

    def __init__(self, model: Any, structure: Structure, answers: Answers, forward: Forward | None) -> None:
        self._answers = answers
        example = captured(model, answers.batches[0], forward)
        graph = graph_of(model, example)
        self._graph, self._variables = graph, graph.weights()
        self.weights: Sequence[Refitted] = []
        self._whole = answering(model, forward)
        self._head: Any = None
        cuts = _cuts(graph.root)
        if any(value is None for value in flat_inputs(graph.root, example)):
            return
        try:
            body, self._head = keras.Model(graph.root.inputs, cuts), keras.Model(cuts, graph.root.outputs)
            both = keras.Model(graph.root.inputs, [*cuts, *graph.root.outputs])
        except ValueError:  # The cuts are inside a nested model, whose tensors are not the outer one's.
            return
        passes = Runner(graph, lambda inputs: list(both(inputs, training=False)))
        self._features: dict[int, list[Any]] = {}
        whole: dict[int, list[Any]] = {}
        for place in answers.places:
            inputs = flat_inputs(graph.root, captured(model, answers.batches[place], forward))
            found = [keras.ops.convert_to_tensor(value) for value in passes.arrays(inputs)]
            self._features[place], whole[place] = found[: len(cuts)], _arrays(found[len(cuts) :])
        first = answers.places[0]
        own = _arrays(self._answer(first))
        if all(np.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(whole[first], own, strict=True)):
            before = {id(weight) for weight in body.weights}
            after = {name for name, weight in self._variables.items() if id(weight) not in before}
            probe = Probe(graph, structure)
            responses = partial(self._responses, probe, example) if probe.shown else lambda changed: None
            self.weights = self._observed(last_consumers(structure, after, responses))

    def _answer(self, place: int) -> list[Any]:
        return list(keras.tree.flatten(self._head(self._features[place], training=False)))

    def _responses(self, probe: Probe, example: Any, changed: Sequence[Consumer]) -> list[tuple[Any, float]]:
        """The size of the widths' responses to one batch, while some weights are halved."""
        held = {consumer.tensor: array(self._variables[consumer.tensor]) for consumer in changed}
        try:
            for name, value in held.items():
                self._variables[name].assign(value / 2)
            seen = [
                (found.key, float(np.square(found.rows, dtype="float64").sum())) for found in probe.responses(example)
            ]
        finally:
            for name, value in held.items():
                self._variables[name].assign(value)
        return [(key, size) for key, size in seen if key in probe.shown]

    def _observed(self, consumers: Sequence[Consumer]) -> list[Refitted]:
        """The consumers whose inputs can be seen in the head, each of them once in a pass, with what they read."""
        by_axis = {(consumer.tensor, consumer.axis): consumer for consumer in consumers}
        known = readers(self._graph, by_axis)
        seen = Seen(consumers, {name: tuple(variable.shape) for name, variable in self._variables.items()})
        for features in self._features.values():
            found = read_in(self._graph, self._head, list(features), known)
            times = Counter(key for key, _ in found)
            for (name, axis), read in found:
                if times[name, axis] == 1:
                    seen.add(name, widened(array(read)).reshape(-1, read.shape[-1]))
        return seen.weights()

    def run(self, place: int) -> list[NDArray[Any]]:
        """The output tensors of a batch."""
        if self._head is None:
            return self._whole(self._answers.batches[place])
        return _arrays(self._answer(place))

    def read(self, names: Sequence[str]) -> Tensors:
        """Weights by name."""
        return {name: widened(array(self._variables[name])) for name in names}

    def write(self, tensors: Tensors) -> None:
        """Set weights."""
        for name, values in tensors.items():
            self._variables[name].assign(values.astype(self._variables[name].dtype))

    def gradients(self, names: Sequence[str], rng: np.random.Generator) -> Iterator[tuple[Tensors, Tensors]]:
        """Gradients of the mean divergence of the rows to fit, and of its random projection, batch by batch."""
        variables = [self._variables[name] for name in names]
        for place in self._features:
            outputs, pull = pullback(partial(self._answer, place), variables)
            found = _arrays(outputs)
            given = {which: parts for which, *parts in self._answers.cotangents(place, found, rng)}
            gradient, projected = (
                pull([given[which][kind] if which in given else 0 * out for which, out in enumerate(found)])
                for kind in range(2)
            )
            yield _named(names, variables, gradient), _named(names, variables, projected)


def _named(names: Sequence[str], variables: Sequence[Any], gradients: Sequence[Any]) -> Tensors:
    return {
        name: np.zeros(tuple(variable.shape)) if value is None else value.astype("float64")
        for name, variable, value in zip(names, variables, gradients, strict=True)
    }


def _cuts(root: Any) -> list[Any]:
    """The tensors between a model's body and its head: the last that recurrent layers made, and inputs beside them."""
    cuts: dict[int, Any] = {}
    waiting, seen = list(root.outputs), set()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        operation, node, _ = tensor._keras_history
        if isinstance(operation, keras.layers.InputLayer) or _recurs(operation):
            cuts[id(tensor)] = tensor
        else:
            waiting += operation._inbound_nodes[node].input_tensors
    return list(cuts.values())


def _recurs(operation: Any) -> bool:
    """Whether an operation is a recurrent layer, or holds one."""
    if isinstance(operation, keras.layers.RNN):
        return True
    return isinstance(operation, keras.layers.Layer) and any(map(_recurs, sublayers(operation)))


def _arrays(outputs: Any) -> list[NDArray[Any]]:
    return [widened(array(value)) for value in keras.tree.flatten(outputs)]
