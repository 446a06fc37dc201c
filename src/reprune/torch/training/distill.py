"""How a pruned model of PyTorch learns what the dense one answers (`reprune.distill`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from reprune.core.distillation import RULED_OUT, nothing_may_change, nothing_to_compare
from reprune.core.passes import Forward
from reprune.torch.tracing.calling import call
from reprune.torch.tracing.record import eval_mode
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.unwrap import unwrap

Divergence = Callable[[Any, Any], torch.Tensor]
"""From what the small and the dense model return to a scalar that gradients flow from."""


@contextmanager
def student(
    small: nn.Module, dense: nn.Module, example: Any, divergence: Divergence | None, forward: Forward | None
) -> Iterator[_Student]:
    """The small model, ready to learn; both models are in eval mode inside.

    Raises:
        StatisticsError: When no parameter requires a gradient.
    """
    small, dense = unwrap(small), unwrap(dense)
    learner = _Student(small, dense, divergence or _total, forward)
    with eval_mode(dense), eval_mode(small), differentiable(small):
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


def apart(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How far an output is from the dense model's.

    - Probabilities (rows of the last axis add up to 1): Σ w log(w / f), the Kullback-Leibler divergence.
    - Numbers from 0 to 1: the same of each number w and its counterpart 1 − w, added up over the last axis.
    - Other numbers: the mean squared difference over the variance, plus the divergence of their softmax, which is
      what counts if they are logits, and zero at the same place if they are not.

    Each is a mean over all rows.

    Args:
        found: Output of the small model (… × features).
        wanted: That of the dense model, of the same shape.
    """
    found, wanted = found.reshape(-1, found.shape[-1]), wanted.reshape(-1, wanted.shape[-1])
    tiny = torch.finfo(found.dtype).tiny
    if bool((wanted >= 0).all()) and bool((wanted <= 1).all()):
        if wanted.shape[1] > 1 and torch.allclose(wanted.sum(1), torch.ones_like(wanted[:, 0]), atol=1e-3):
            return _kl(found.clamp(min=tiny).log(), wanted.clamp(min=tiny).log())
        own = functional.binary_cross_entropy(wanted, wanted, reduction="sum")
        return (functional.binary_cross_entropy(found.clamp(0, 1), wanted, reduction="sum") - own) / len(wanted)
    # Classes that are ruled out have logits of −∞.
    counts = torch.isfinite(wanted)
    scale = wanted[counts].var(correction=0).clamp(min=1e-7)
    square = (found - wanted)[counts].square().mean() / scale
    found, wanted = (logits.masked_fill(~counts, RULED_OUT) for logits in (found, wanted))
    return square + _kl(found.log_softmax(1), wanted.log_softmax(1))


def _kl(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return functional.kl_div(found, wanted, log_target=True, reduction="batchmean")


def _total(found: Any, wanted: Any) -> torch.Tensor:
    pairs = list(zip(tensors_in(found), tensors_in(wanted), strict=True))
    # States that the caller carries have fewer units than those of the dense model.
    pairs = [(f, w) for f, w in pairs if f.requires_grad and f.shape == w.shape and f.ndim and f.numel()]
    if not pairs:
        raise nothing_to_compare()
    return torch.stack([apart(f, w) for f, w in pairs]).sum()


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
