"""Learning from labels and from a dense model's most likely classes at once (`core.answers.likely`), in PyTorch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from reprune.core.answers.likely import LEAST, kept_of


class Likely(NamedTuple):
    """A model's most likely classes (… × k), and the logarithms of their probabilities, the rest's last (… × k + 1)."""

    classes: Tensor
    logs: Tensor


def likely(logits: Tensor) -> Likely:
    """The most likely classes of logits (… × classes)."""
    logs = logits.float().log_softmax(-1)
    top = logs.topk(kept_of(logits.shape[-1]), dim=-1, sorted=False)
    # What is not among them is added up itself: 1 less the others would be rounding where it is little.
    rest = logs.scatter(-1, top.indices, -torch.inf).logsumexp(-1, keepdim=True)
    return Likely(top.indices, torch.cat([top.values, rest], -1))


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
        wanted = logs.to(own.dtype).softmax(-1)
        counts, labels = labels != ignored, labels.clamp_min(0).unsqueeze(-1)
        found = own.gather(-1, classes)
        rest = (1 - found.exp().sum(-1, keepdim=True)).clamp_min(LEAST)
        taught = -(wanted[:, :-1] * found).sum(-1) - (wanted[:, -1:] * rest.log()).squeeze(-1)
        text = -own.gather(-1, labels).squeeze(-1)
        ctx.save_for_backward(own, labels, classes, wanted, found, rest, counts)
        ctx.share, ctx.kind = share, logits.dtype
        return text.lerp(taught, share)[counts].sum()

    @staticmethod
    def backward(ctx: Any, *given: Any) -> Any:
        """∂/∂logits = q − (1 − share) label − share target, the rest's target in proportion to q."""
        own, labels, classes, wanted, found, rest, counts = ctx.saved_tensors
        above = ctx.share * wanted[:, -1:] / rest
        gradient = own.exp().mul_(1 - above)
        gradient.scatter_add_(-1, classes, found.exp() * above - ctx.share * wanted[:, :-1])
        gradient.scatter_add_(-1, labels, torch.full_like(rest, ctx.share - 1))
        gradient.mul_((counts.to(own.dtype) * given[0]).unsqueeze(-1))
        return gradient.to(ctx.kind), None, None, None, None, None
