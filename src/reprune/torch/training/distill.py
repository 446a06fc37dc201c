"""The pruned model is trained, without labels, to answer what the dense one answers; see `core.distillation`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from reprune.core.distillation import (
    RULED_OUT,
    Progress,
    check_steps,
    diverged,
    nothing_may_change,
    nothing_to_compare,
    step_size,
)
from reprune.core.passes import endless
from reprune.torch.tracing.record import Forward, call, eval_mode
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.unwrap import unwrap

Divergence = Callable[[Any, Any], torch.Tensor]
"""From what the small and the dense model return to a scalar that gradients flow from."""


def distill(
    small: nn.Module,
    dense: nn.Module,
    batches: Iterable[Any],
    steps: int = 400,
    *,
    learning_rate: float = 1e-3,
    divergence: Divergence | None = None,
    forward: Forward | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Train a pruned model in place to answer what the dense one does: no labels, no loss of one's own.

    Adam, on the parameters of the small model that require a gradient, with a step size that falls to zero. Both models
    run in eval mode: no dropout, no change of running statistics. Modes are put back at the end.

    Args:
        small: The pruned model.
        dense: The model it was pruned from; it is left as it was.
        batches: Inputs as the models take them, gone through again and again: a list or a data loader.
        steps: Batches to learn from.
        learning_rate: Largest step size.
        divergence: How far apart two outputs are: a function of what the small and the dense model return. By default
            `apart`, summed over all output tensors.
        forward: Replaces `model(batch)`: a function of model and batch.
        progress: Called after every step with its number and the divergence.

    Returns:
        The small model.

    Example:
        >>> result = reprune.prune(model, batches, ratio=0.75)            # doctest: +SKIP
        >>> reprune.distill(result.model, model, batches, steps=400)      # doctest: +SKIP

    Raises:
        StatisticsError: When the batches cannot be gone through again, nothing of the outputs can be compared, no
            parameter requires a gradient, or the divergence stops being a finite number. The weights are then those
            from before.
    """
    check_steps(steps)
    small, dense = unwrap(small), unwrap(dense)
    weights = [weight for weight in small.parameters() if weight.requires_grad]
    if not weights:
        raise nothing_may_change(small)
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.Adam(weights, lr=learning_rate)
    compare = divergence or _total
    with eval_mode(dense), eval_mode(small), differentiable(small):
        for step, batch in enumerate(endless(batches, torch.is_tensor, steps), start=1):
            with torch.no_grad():
                wanted = call(dense, batch, forward)
            with torch.enable_grad():
                loss = compare(call(small, batch, forward), wanted)
                gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            if not bool(torch.isfinite(loss)):
                with torch.no_grad():
                    for weight, held in zip(weights, before, strict=True):
                        weight.copy_(held)
                raise diverged(float(loss.detach()), step, learning_rate)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.param_groups[0]["lr"] = step_size(step, steps, learning_rate)
            optimizer.step()
            optimizer.zero_grad()
            if progress is not None:
                progress(step, float(loss.detach()))
    return small


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
