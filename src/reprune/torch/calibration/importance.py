"""How much the model's output depends on what its consumers compute.

An error e in the output y of a consumer moves the model's output by about J e, J being the Jacobian. For a random
sign vector r, the gradient of r·output with respect to y has E[g gᵀ] = Jᵀ J (Hutchinson's estimator), so the mean
square of g says how much an error in each component of y weighs. It is read off the gradient of the consumer's weight,
the outer product of g and what the consumer read, so that recurrent kernels need not be taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import BuiltinFunctionType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from reprune.core.evidence.passes import Forward
from reprune.core.evidence.readings import Axis, random_signs
from reprune.core.layers import Consumer
from reprune.torch.calibration.kernels import SEQUENCES
from reprune.torch.surgery.apply import named_tensors
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.running.copies import duplicate
from reprune.torch.tracing.running.isolation import run_apart


def output_importance(
    model: nn.Module,
    consumers: Iterable[Consumer],
    example: Any,
    forward: Forward | None = None,
    *,
    draws: int = 4,
    seed: int = 0,
    share: bool = False,
) -> dict[Axis, torch.Tensor]:
    """Sensitivity of the model's output to each consumer's outputs, on one batch.

    Args:
        model: The model; it is left as it was, a copy of it runs.
        consumers: The weights that read units.
        example: One batch, as the model takes it.
        forward: Replaces `model(example)`.
        draws: Random projections of the output that are averaged.
        seed: Their seed.
        share: Use the same memory for weights; only for a model that is private itself.

    Returns:
        For the tensor and axis of each consumer, the squared gradient summed over that axis: one number per output.
        Empty when the output has no gradient (a decoded string of indices, say).
    """
    model = duplicate(model, share=share)
    tensors = named_tensors(model.requires_grad_(False))
    axes = {(c.tensor, c.axis): tensors[c.tensor] for c in consumers if isinstance(tensors[c.tensor], nn.Parameter)}
    for weight in axes.values():
        weight.requires_grad_(True)
    rng = np.random.default_rng(seed)
    try:
        with torch.enable_grad(), differentiable_kernels():
            outputs = [t for t in tensors_in(run_apart(model, example, forward, seed)) if t.requires_grad]
        total = {key: torch.zeros((), dtype=torch.float64, device=weight.device) for key, weight in axes.items()}
        for _ in range(draws if outputs else 0):
            signs = [torch.from_numpy(random_signs(rng, tuple(out.shape))).to(out) for out in outputs]
            gradients = pulled_back(outputs, list(axes.values()), signs)
            for (key, _weight), gradient in zip(axes.items(), gradients, strict=True):
                if gradient is not None:
                    total[key] = total[key] + _squares(gradient, key[1]) / draws
    except RuntimeError:
        # In-place writes and inference mode inside the user's forward: it computes, but has no gradient.
        return {}
    return {key: value.detach() for key, value in total.items() if value.ndim}


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Within this context and thread, recurrent kernels have a backward pass: cuDNN has one in training mode only."""
    with _TrainingKernels():
        yield


class _TrainingKernels(TorchFunctionMode):
    """Runs recurrent kernels in training mode, without the dropout that they would have there."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if isinstance(func, BuiltinFunctionType) and func.__name__ in SEQUENCES and not kwargs:
            at = 6 if isinstance(args[3], (list, tuple)) else 5
            dropout, train = args[at : at + 2]
            args = (*args[:at], dropout if train else 0.0, True, *args[at + 2 :])
        return func(*args, **(kwargs or {}))


def _squares(gradient: torch.Tensor, axis: int) -> torch.Tensor:
    """Sums of squares over an axis, in double precision; scaled, as squares of small numbers vanish in others."""
    scale = gradient.abs().max().clamp(min=torch.finfo(gradient.dtype).tiny)
    return (gradient / scale).square().sum(axis, dtype=torch.float64) * scale.double().square()


def pulled_back(
    outputs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of Σ cotangent · output with respect to some weights; the graph stays."""
    # As numbers: for gradients that it is given, PyTorch imports SymPy first, which takes half a second.
    numbers = [(output * given).sum() for output, given in zip(outputs, cotangents, strict=True)]
    return torch.autograd.grad(numbers, weights, retain_graph=True, allow_unused=True)
