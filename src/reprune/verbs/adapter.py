"""What the verbs ask of a framework. Each framework answers in one module, named in `ADAPTERS`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol, cast

from reprune.core.answers.answers import Answers, Meaning, Run, Told
from reprune.core.answers.gates import Learner
from reprune.core.answers.gauss_newton import Pupil
from reprune.core.budget.latency import LatencyTable
from reprune.core.errors import PlanError, UnsupportedModelError, keras_2_error
from reprune.core.evidence.class_moments import ClassMoments
from reprune.core.evidence.passes import Forward, Labels, Loss
from reprune.core.evidence.readings import Axis, Statistics
from reprune.core.extras import imported
from reprune.core.layers import Pin, Scope, Structure
from reprune.core.plan import Plan

ADAPTERS = {"keras": ("Model", "reprune.keras.adapter"), "torch": ("nn.Module", "reprune.torch.adapter")}
"""For each framework the class of its models, and the module that answers. Keras comes first: on its PyTorch
backend, its models are modules of PyTorch as well."""


class Recorded(Protocol):
    """A traced pass."""

    def structure(self, extra_pins: dict[str, Pin] | None = None, /) -> Structure:
        """What was found; some layers are pinned for reasons found later."""


class Student(Protocol):
    """A pruned model that learns from a dense one."""

    def learn(self, batch: Any, step_size: float) -> float:
        """Take one step; returns the divergence from the dense model's answers before it."""

    def restore(self) -> None:
        """Put the weights back as they were at the start."""


class Adapter(Protocol):
    """A framework: how its models are traced, observed, cut, run and kept. `found` is what `record` returned."""

    def checked(self, model: Any, /) -> Any:
        """The model without wrappers; an `UnsupportedModelError` for what no verb can take."""

    def made_plain(self, model: Any, /) -> Sequence[str]:
        """Weights that the model computes in every call and that `checked` makes plain, each with what computes it."""

    def private(self, model: Any, /) -> Any:
        """What may be run in place of the model, so that nothing is written to it, whoever runs it meanwhile."""

    def is_tensor(self, value: Any, /) -> bool:
        """Whether a value is one input, rather than an iterable of inputs."""

    def accepted(self, model: Any, example: Any, forward: Forward | None, /) -> Forward | None:
        """How the model takes such a batch, found by trying; a `BatchError` when it takes it in no way."""

    def record(
        self, model: Any, example: Any, forward: Forward | None, /, *, uniform: bool = False, scope: Scope = "recurrent"
    ) -> Recorded:
        """Trace one pass of the model."""

    def rehearse(
        self, found: Any, model: Any, example: Any, forward: Forward | None, exclude: Sequence[str], /
    ) -> Structure:
        """The structure, with layers pinned that do not survive the removal of units."""

    def arrays(self, found: Any, model: Any, structure: Structure, /) -> Mapping[str, Any]:
        """The weights that know units, in a precision that linear algebra accepts."""

    def observe(
        self, model: Any, structure: Structure, batches: Iterable[Any], forward: Forward | None, /
    ) -> Statistics:
        """Statistics of the layers' responses."""

    def observe_readings(
        self,
        found: Any,
        model: Any,
        structure: Structure,
        batches: Iterable[Any],
        forward: Forward | None,
        told: Told,
        /,
    ) -> tuple[Statistics, Mapping[Axis, Any]]:
        """Statistics with what consumers read, and how much the output depends on each consumer (`Importance`).

        Answers to a batch that are seen on the way are told, after the batch was taken and before the next one is.
        """

    def observe_classes(
        self, model: Any, structure: Structure, batches: Iterable[Any], labels: Labels, forward: Forward | None, /
    ) -> Mapping[str, ClassMoments]:
        """Statistics of the responses by class."""

    def loss_gradients(
        self, found: Any, model: Any, structure: Structure, batches: Iterable[Any], loss: Loss, /
    ) -> Mapping[str, Any]:
        """Gradient of the mean loss with respect to the weights that know units."""

    def check(self, model: Any, plan: Plan, /) -> None:
        """Raise a `PlanError` unless the model has the tensors that the plan names."""

    def digest(self, model: Any, structure: Structure, /) -> str:
        """The digest of all weights (`core.saving.digest`), wherever and of whatever type, without `written` ones."""

    def apply(self, model: Any, plan: Plan, /) -> Any:
        """The smaller model."""

    def mask(self, model: Any, plan: Plan, /) -> Any:
        """The full-size model in which nothing reads the removed units."""

    def verify(self, plan: Plan, found: Any, model: Any, small: Any, example: Any, forward: Forward | None, /) -> None:
        """Raise unless the smaller model computes what the masked one does."""

    def answering(self, model: Any, forward: Forward | None, /) -> Run:
        """The model as a function from a batch to its output tensors, as arrays."""

    def planned(self, found: Any, model: Any, plan: Plan | None, forward: Forward | None, /) -> Run:
        """What the model of a plan answers, whether it is made for that or not; without a plan, the dense one."""

    def narrowed(self, found: Any, model: Any, plan: Plan, forward: Forward | None, /) -> Forward | None:
        """How the plan's model takes a batch for the dense one: states that it is handed may be narrower."""

    def meaning(self, found: Any, model: Any, example: Any, forward: Forward | None, /) -> Meaning:
        """What is known of the output tensors."""

    def pupil(self, small: Any, structure: Structure, answers: Answers, forward: Forward | None, /) -> Pupil:
        """A pruned model whose consumers are refitted in place; `structure` is its own."""

    def gates(
        self,
        model: Any,
        small: Any,
        plan: Plan,
        answers: Answers,
        forward: Forward | None,
        narrowed: Forward | None,
        /,
    ) -> Learner:
        """A pruned model whose gates are refitted in place; it takes a batch as `narrowed` says."""

    def measure_latency(
        self,
        model: Any,
        example: Any,
        /,
        *,
        runtime: str | None,
        threads: int,
        forward: Forward | None,
        structure: Structure | None,
    ) -> LatencyTable:
        """Time layer sizes on this machine; the framework's usual runtime if None."""

    def save_weights(self, model: Any, plan: Plan, path: Path, /) -> None:
        """Write a pruned model's weights as safetensors."""

    def load_pruned(self, dense: Any, plan: Plan, path: Path, /, *, sealed: bool) -> Any:
        """The smaller model with the weights of such a file; `sealed` when that is known to hold what was saved."""

    def student(
        self, small: Any, dense: Any, example: Any, divergence: Any, forward: Forward | None, /
    ) -> AbstractContextManager[Student]:
        """The small model, ready to learn; modes are as they were afterwards."""

    @property
    def export(self) -> Callable[..., Any]:
        """Write a file for a runtime: a function of model, example and path, with options."""


def fitting(adapter: Adapter, model: Any, plan: Plan, compensate: bool = True) -> Plan:
    """The plan as it may be applied to a model: with its corrections if they were fitted to these weights, or without.

    Raises:
        PlanError: When they were fitted to other weights, or it is no plan.
    """
    if not isinstance(plan, Plan):
        raise PlanError(f"The plan is a {type(plan).__name__}: give a Plan, read from a file by Plan.from_json(text).")
    if not compensate:
        return plan.cut_only()
    adapter.check(model, plan)
    plan.check_weights(adapter.digest(model, plan.structure) if plan.fitted_to else None)
    return plan


def adapter_of(model: Any) -> Adapter:
    """The adapter of a model's framework, which is imported already if there is a model of it.

    Raises:
        UnsupportedModelError: When the model belongs to no framework that is known.
    """
    for framework, (kind, path) in ADAPTERS.items():
        if framework in sys.modules and isinstance(model, attrgetter(kind)(sys.modules[framework])):
            return cast(Adapter, imported(path))
    name = f"{type(model).__module__}.{type(model).__name__}"
    if name.startswith("tf_keras."):
        raise keras_2_error(name)
    raise UnsupportedModelError(
        f"{name} is neither a torch.nn.Module nor a keras.Model: give the model itself, with its weights loaded."
    )
