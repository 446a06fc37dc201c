"""Learning from labels and from what is kept of a dense model's answers at once (`core.answers.likely`), in PyTorch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reprune.core.answers.likely import kept_of, starts


class Likely(NamedTuple):
    """Classes that stand for a model's answer, and the logarithms of how much of it each does (… × k + m both)."""

    classes: Tensor
    logs: Tensor


def unpacked(classes: NDArray[Any], logs: NDArray[Any]) -> Likely:
    """What `core.answers.likely.packed` made, in types that PyTorch computes with."""
    return Likely(torch.from_numpy(classes.astype(np.int64)), torch.from_numpy(logs.astype(np.float32)))


def likely(logits: Tensor, rng: np.random.Generator) -> Likely:
    """What is kept of logits (… × classes)."""
    kept, drawn = kept_of(logits.shape[-1])
    chances = logits.float().softmax(-1).flatten(0, -2)
    top = chances.topk(kept, dim=-1, sorted=False)
    found = Likely(top.indices, top.values.log())
    if drawn:
        sums = chances.scatter_(-1, top.indices, 0.0).cumsum(-1)
        places = torch.from_numpy(starts(rng, len(sums))).to(sums.device) * sums[:, -1:]
        # Rounding may lead past the last class.
        others = torch.searchsorted(sums, places, right=True).clamp_max(logits.shape[-1] - 1)
        each = (sums[:, -1:] / drawn).log().expand_as(others)
        found = Likely(torch.cat([found.classes, others], -1), torch.cat([found.logs, each], -1))
    return Likely(*(part.reshape(*logits.shape[:-1], -1) for part in found))


def shared_cross_entropy(
    logits: Tensor, labels: Tensor, answers: Likely, share: float, *, ignored: int = -100
) -> Tensor:
    """Cross entropy with labels, and a share of it with a dense model's answers, summed over rows.

    Args:
        logits: Rows of logits (n × classes).
        labels: Class numbers (n), `ignored` for none: such a row does not count.
        answers: Those of the dense model to the same rows.
        share: Of the answers, from 0 to 1.
        ignored: See `labels`.
    """
    total: Tensor = _Shared.apply(logits, labels, answers.classes, answers.logs, share, ignored)  # type: ignore[no-untyped-call]
    return total


class _Shared(torch.autograd.Function):
    """With the gradient in closed form: for wide softmaxes, what counts is how often all classes are gone through."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, classes: Tensor, logs: Tensor, share: float, ignored: int
    ) -> Tensor:
        """See `shared_cross_entropy`."""
        own = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        counts, labels = labels != ignored, labels.clamp_min(0).unsqueeze(-1)
        wanted = logs.to(own.dtype).softmax(-1)
        taught = -(wanted * own.gather(-1, classes)).sum(-1)
        text = -own.gather(-1, labels).squeeze(-1)
        ctx.save_for_backward(own, labels, classes, wanted, counts)
        ctx.share, ctx.kind = share, logits.dtype
        # Not by picking rows: how many count would have to be known first, which a CUDA graph cannot wait for.
        return text.lerp(taught, share).where(counts, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, *given: Any) -> Any:
        """∂/∂logits: the small model's probabilities, less those that are wanted."""
        own, labels, classes, wanted, counts = ctx.saved_tensors
        gradient = own.exp()
        gradient.scatter_add_(-1, classes, -ctx.share * wanted)
        gradient.scatter_add_(-1, labels, torch.full_like(own[:, :1], ctx.share - 1))
        gradient.mul_((counts.to(own.dtype) * given[0]).unsqueeze(-1))
        return gradient.to(ctx.kind), None, None, None, None, None
