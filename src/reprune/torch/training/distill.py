"""How a pruned model of PyTorch learns what the dense one answers (`reprune.distill`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from reprune.core.answers.distillation import nothing_may_change, nothing_to_compare
from reprune.core.answers.divergence import Divergence as Kind
from reprune.core.answers.divergence import aligned, divergence_of
from reprune.core.evidence.passes import Forward
from reprune.torch.calibration.pupil import made_by_sigmoid
from reprune.torch.tracing.record import eval_mode
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.running.calling import call
from reprune.torch.tracing.running.copies import duplicate
from reprune.torch.tracing.running.unwrap import unwrap

Divergence = Callable[[Any, Any], torch.Tensor]
"""From what the small and the dense model return to a scalar that gradients flow from."""


@contextmanager
def student(
    small: nn.Module, dense: nn.Module, example: Any, divergence: Divergence | str | None, forward: Forward | None
) -> Iterator[_Student]:
    """The small model, ready to learn, and in eval mode inside; the dense one answers through a private copy.

    Raises:
        StatisticsError: When no parameter requires a gradient.
    """
    small, dense = unwrap(small, computed=True), duplicate(unwrap(dense, computed=True)).eval()
    if divergence is None or isinstance(divergence, str):
        divergence = Comparison(divergence, made_by_sigmoid(dense, example, forward))
    learner = _Student(small, dense, divergence, forward)
    with eval_mode(small), differentiable(small):
        yield learner


class _Student:
    """Learns with Adam, on the parameters of the small model that require a gradient."""

    def __init__(self, small: nn.Module, dense: nn.Module, compare: Divergence, forward: Forward | None) -> None:
        self._weights = [weight for weight in small.parameters() if weight.requires_grad]
        if not self._weights:
            raise nothing_may_change(small)
        self._before = [weight.detach().clone() for weight in self._weights]
        self._small, self._dense, self._compare, self._forward = small, dense, compare, forward
        self._optimizer = torch.optim.Adam(self._weights)

    def learn(self, batch: Any, step_size: float) -> float:
        """Take one step; returns the divergence before it. Nothing changes where that is no finite number."""
        with torch.no_grad():
            wanted = call(self._dense, batch, self._forward)
        with torch.enable_grad():
            loss = self._compare(call(self._small, batch, self._forward), wanted)
            gradients = torch.autograd.grad(loss, self._weights, allow_unused=True)
        if bool(torch.isfinite(loss)):
            for weight, gradient in zip(self._weights, gradients, strict=True):
                weight.grad = gradient
            self._optimizer.param_groups[0]["lr"] = step_size
            self._optimizer.step()
            self._optimizer.zero_grad()
        return float(loss.detach())

    def restore(self) -> None:
        """Put the weights back as they were at the start."""
        with torch.no_grad():
            for weight, held in zip(self._weights, self._before, strict=True):
                weight.copy_(held)


class Comparison:
    """How far outputs are from the dense model's: the mean divergence over rows, added up over output tensors.

    What each tensor is compared by is decided on the first batch (`core.answers.divergence.divergence_of`).

    Args:
        name: A divergence's name, or None.
        chances: Which of the output tensors hold numbers that a sigmoid made.
    """

    def __init__(self, name: str | None, chances: Collection[int] = ()) -> None:
        self._name, self._chances = name, chances
        self._kinds: dict[int, Kind] = {}

    def __call__(self, found: Any, wanted: Any) -> torch.Tensor:
        """The divergence of what the small model returned from what the dense one did."""
        parts = []
        for place, (own, dense) in enumerate(zip(tensors_in(found), tensors_in(wanted), strict=True)):
            # States that the caller carries have fewer units than those of the dense model.
            if own.requires_grad and own.shape == dense.shape and own.ndim and own.numel():
                rows, target = (part.reshape(-1, part.shape[-1] if part.ndim > 1 else 1) for part in (own, dense))
                if place not in self._kinds:
                    self._kinds[place] = divergence_of(target, self._name, chances=place in self._chances)
                parts.append(self._kinds[place].values(*aligned(rows, target)).mean())
        if not parts:
            raise nothing_to_compare()
        return torch.stack(parts).sum()


class Teacher:
    """A model that answers and does not learn: in eval mode, without gradients, on the device of what it is given.

    It is no `nn.Module`, so that a module that holds one neither trains nor keeps it.

    Args:
        model: The model; it is moved to the device of the first tensor that it is given.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model.eval().requires_grad_(False)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """What the model answers."""
        given = next(iter(tensors_in((inputs, named))), None)
        if given is not None:
            self._model.to(given.device)
        with torch.no_grad():
            return self._model(*inputs, **named)


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Inside, recurrent modules of a model in eval mode have a backward pass: cuDNN has one in training mode only."""
    modules = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    held = [(module, module.training, module.dropout) for module in modules]
    for module in modules:
        module.training, module.dropout = True, 0.0
    try:
        yield
    finally:
        for module, training, dropout in held:
            module.training, module.dropout = training, dropout
