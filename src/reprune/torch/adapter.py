"""PyTorch's answers to the verbs (`reprune.verbs.adapter`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from math import prod
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, inference_mode, is_tensor, nn

from reprune.core.answers.answers import Meaning, Run, Told
from reprune.core.errors import InternalError, RepruneError
from reprune.core.evidence.passes import Forward, Loss, stretches
from reprune.core.evidence.readings import Axis, Importance, Statistics
from reprune.core.layers import Scope, Structure
from reprune.core.plan import Plan
from reprune.torch import weights
from reprune.torch.calibration import gates as gated
from reprune.torch.calibration import labelled, responses
from reprune.torch.calibration import pupil as pupils
from reprune.torch.calibration.importance import output_importance
from reprune.torch.calibration.pupil import answering
from reprune.torch.export import export
from reprune.torch.latency import measure_latency
from reprune.torch.surgery import apply as surgery
from reprune.torch.surgery import verify as verification
from reprune.torch.surgery.apply import check, named_tensors
from reprune.torch.tracing import accepting
from reprune.torch.tracing import record as recording
from reprune.torch.tracing.location import of_error, ours
from reprune.torch.tracing.record import Trace
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.running.computed import computed
from reprune.torch.tracing.running.copies import duplicate
from reprune.torch.tracing.running.shortening import SEQUENCES, shortened
from reprune.torch.tracing.running.unwrap import checked, unwrap
from reprune.torch.training.distill import student
from reprune.torch.weights import digest, save_weights

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

P = ParamSpec("P")
R = TypeVar("R")


def _guarded(function: Callable[P, R]) -> Callable[P, R]:
    """A verb's part as users meet it: what fails in reprune's own code says so.

    It runs outside of `torch.inference_mode()`, whose tensors could be neither trained nor observed.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with inference_mode(False):
                return function(*args, **kwargs)
        except RepruneError:
            raise
        except Exception as error:
            if not ours(error):
                raise
            raise InternalError(
                f"reprune itself failed in {function.__name__}: {error!r}, when the model's code was at "
                f"{of_error(error, 'its forward')}. This is a gap of reprune, not of the model: please report it with "
                "that line. Until then leave the layers there alone with exclude=[...], or write the line differently."
            ) from error

    return run


def made_plain(model: nn.Module) -> list[str]:
    """Computed weights that `checked` makes plain."""
    return [str(found) for found in computed(unwrap(model, computed=True))]


private = _guarded(duplicate)
accepted = _guarded(accepting.accepted)
apply, mask = _guarded(surgery.apply), _guarded(surgery.mask)
load_pruned, pupil, gates = _guarded(weights.load_pruned), _guarded(pupils.Pupil), _guarded(gated.Gates)
observe_classes = _guarded(labelled.observe_classes)
SAMPLED = 6
"""Sequences of a batch that say how much the output depends on consumers with many outputs."""


@_guarded
def record(
    model: nn.Module, example: Any, forward: Forward | None = None, *, uniform: bool = False, scope: Scope = "recurrent"
) -> Trace:
    """Trace one pass of the model, on a few sequences of the example."""
    few, cut = shortened(model, example, forward)
    found = recording.record(model, few, forward, uniform=uniform, scope=scope, share=True)
    found.cut = cut
    return found


@_guarded
def rehearse(
    found: Trace, model: nn.Module, example: Any, forward: Forward | None, exclude: Sequence[str]
) -> Structure:
    """The structure, with layers pinned that do not survive the removal of units, on what was traced."""
    return verification.rehearse(found, model, found.example, forward, exclude)


@_guarded
def verify(plan: Plan, found: Trace, model: nn.Module, small: nn.Module, example: Any, forward: Forward | None) -> None:
    """Raise unless the smaller model computes what the masked one does, on all steps of a few sequences."""
    verification.verify(plan, found, model, small, found.cut(example, SEQUENCES), forward)


def arrays(found: Trace, model: nn.Module, structure: Structure) -> dict[str, Tensor]:
    """The tensors that know units, in a precision that linear algebra accepts."""
    tensors = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    return {
        name: tensors[name].float() if tensors[name].dtype.itemsize < 4 else tensors[name] for name in structure.shapes
    }


@_guarded
def observe(
    model: nn.Module, structure: Structure, batches: Iterable[Any], forward: Forward | None = None
) -> Statistics:
    """Statistics of the layers' responses."""
    return responses.observe(model, structure, batches, forward, share=True)


@_guarded
def observe_readings(
    found: Trace, model: nn.Module, structure: Structure, batches: Iterable[Any], forward: Forward | None, told: Told
) -> tuple[Statistics, Mapping[Axis, Tensor]]:
    """Statistics with those of what consumers read, and how much the output depends on the consumers."""
    importance = Importance(
        sum(prod(structure.shapes[c.tensor]) // structure.shapes[c.tensor][c.axis] for c in structure.consumers)
    )

    def looked_at() -> Iterator[Any]:
        for stretch in stretches(batches):
            gradients = output_importance(
                model,
                structure.consumers,
                found.cut(stretch.first, SAMPLED) if importance.sure else stretch.first,
                forward,
                draws=importance.draws,
                seed=importance.batches,
                share=True,
            )
            yield from stretch
            importance.add(gradients, stretch.batches)

    statistics = responses.observe(
        model,
        structure,
        looked_at(),
        forward,
        readings=True,
        share=True,
        told=lambda output: told([pupils.widened(tensor) for tensor in tensors_in(output)]),
    )
    return statistics, importance.mean()


@_guarded
def meaning(found: Trace, model: nn.Module, example: Any, forward: Forward | None) -> Meaning:
    """What is known of the output tensors."""
    return Meaning(pupils.made_by_sigmoid(model, found.example, forward), found.state_outputs)


def planned(found: Trace, model: nn.Module, plan: Plan | None, forward: Forward | None) -> Run:
    """What the model of a plan answers."""
    return answering(model if plan is None else apply(model, plan), forward)


def narrowed(found: Trace, model: nn.Module, plan: Plan, forward: Forward | None) -> Forward | None:
    """How the plan's model is called: as the dense one, for it takes states of the old widths, too."""
    return forward


@_guarded
def loss_gradients(
    found: Trace, model: nn.Module, structure: Structure, batches: Iterable[Any], loss: Loss
) -> Mapping[str, Any]:
    """Gradient of the mean loss with respect to every tensor that knows units."""
    return labelled.loss_gradients(model, structure, batches, loss)
