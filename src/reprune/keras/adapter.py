"""Keras's answers to the verbs (`reprune.verbs.adapter`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from reprune.core.answers.answers import Answers, Meaning, Run, Told
from reprune.core.evidence.passes import Forward, Loss, stretches
from reprune.core.evidence.readings import Axis, Importance, Statistics
from reprune.core.layers import Scope, Structure
from reprune.core.plan import Plan
from reprune.core.rehearsal import inexact
from reprune.keras.calibration import gates as gated
from reprune.keras.calibration import labelled
from reprune.keras.calibration.importance import OutputImportance
from reprune.keras.calibration.labelled import observe_classes
from reprune.keras.calibration.pupil import Pupil, answering, made_by_sigmoid, masked_answers
from reprune.keras.calibration.responses import observe
from reprune.keras.export import export
from reprune.keras.latency import measure_latency
from reprune.keras.surgery import verify as rehearsal
from reprune.keras.surgery.apply import apply, mask
from reprune.keras.surgery.cloning import weight_arrays
from reprune.keras.surgery.rename import fitted
from reprune.keras.surgery.verify import narrowed
from reprune.keras.tracing import record as tracing
from reprune.keras.tracing.accepting import accepted
from reprune.keras.tracing.graph import check_keras as checked
from reprune.keras.tracing.graph import flat_inputs, graph_of, is_tensor
from reprune.keras.tracing.record import Trace, captured
from reprune.keras.training.distill import student
from reprune.keras.weights import digest, load_pruned, save_weights

__all__ = [
    "accepted",
    "answering",
    "apply",
    "arrays",
    "check",
    "checked",
    "digest",
    "export",
    "gates",
    "is_tensor",
    "load_pruned",
    "loss_gradients",
    "made_plain",
    "mask",
    "meaning",
    "measure_latency",
    "narrowed",
    "observe",
    "observe_classes",
    "observe_readings",
    "planned",
    "private",
    "pupil",
    "record",
    "rehearse",
    "save_weights",
    "student",
    "verify",
]

gates = gated.Gates


def record(
    model: Any, example: Any, forward: Forward | None = None, *, uniform: bool = False, scope: Scope = "recurrent"
) -> Trace:
    """Trace one pass of the model."""
    return tracing.record(model, example, forward, uniform=uniform, scope=scope)


def made_plain(model: Any) -> tuple[str, ...]:
    """Keras layers hold the weights that they use."""
    return ()


def private(model: Any) -> Any:
    """The model itself: what runs here are functions of its graph, which assign to none of its variables."""
    return model


def rehearse(found: Trace, model: Any, example: Any, forward: Forward | None, exclude: Sequence[str]) -> Structure:
    """The structure, with layers pinned that do not survive the removal of units; the trace holds the example."""
    return rehearsal.rehearse(found, model, exclude)


def verify(plan: Plan, found: Trace, model: Any, small: Any, example: Any, forward: Forward | None) -> None:
    """Raise unless the smaller model computes what the masked one does; the trace holds the example."""
    rehearsal.verify(plan, found, model, small)


def check(model: Any, plan: Plan) -> None:
    """Raise a `PlanError` unless the model has the weights that the plan names, in their order."""
    fitted(plan, graph_of(model))


def arrays(found: Trace, model: Any, structure: Structure) -> dict[str, Any]:
    """The weights, in a precision that linear algebra accepts."""
    return weight_arrays(found.graph)


def observe_readings(
    found: Trace, model: Any, structure: Structure, batches: Iterable[Any], forward: Forward | None, told: Told
) -> tuple[Statistics, Mapping[Axis, Any]]:
    """Statistics with those of what consumers read, and how much the output depends on the consumers."""
    importance, of_output = Importance(), OutputImportance(found.graph, structure.consumers)

    def looked_at() -> Iterator[Any]:
        # One observation of all batches, as each builds functions of its own that the backend compiles.
        for stretch in stretches(batches):
            inputs = flat_inputs(found.graph.root, captured(model, stretch.first, forward))
            gradients = of_output(inputs, draws=importance.draws, seed=importance.batches)
            yield from stretch
            importance.add(gradients, stretch.batches)

    return observe(model, structure, looked_at(), forward, readings=True, told=told), importance.mean()


def pupil(small: Any, structure: Structure, answers: Answers, forward: Forward | None) -> Pupil:
    """A pruned model whose consumers are refitted in place."""
    return Pupil(small, structure, answers, forward)


def planned(found: Trace, model: Any, plan: Plan | None, forward: Forward | None) -> Run:
    """What the model of a plan answers: the masked one does so, unless the plan is of layers that are approximate."""
    if plan is not None and inexact(plan):
        return answering(apply(model, plan), narrowed(found, model, plan, forward))
    return masked_answers(found, model, plan, forward)


def meaning(found: Trace, model: Any, example: Any, forward: Forward | None) -> Meaning:
    """What is known of the output tensors."""
    _, returned = found.states
    return Meaning(made_by_sigmoid(found.graph), [place for place, slot in enumerate(returned) if slot is not None])


def loss_gradients(
    found: Trace, model: Any, structure: Structure, batches: Iterable[Any], loss: Loss
) -> Mapping[str, Any]:
    """Gradient of the mean loss with respect to every weight."""
    return labelled.loss_gradients(found.graph, model, batches, loss)
