"""Losses: values that are made of units and carry no labels any more, and the units that they meet later.

Numbers made of units that stay may stand for these units one by one all the same, as those of a softmax over them do.
What they are combined with then cannot lose entries either, and if the smaller model fails there, this is why.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reprune.torch.tracing.labels import storage_id, unit_ids
from reprune.torch.tracing.location import here
from reprune.torch.tracing.recording import Loss
from reprune.torch.tracing.rules.op import Op


def lose(op: Op, reason: str) -> None:
    """Note that an operation's result is made of units that cannot be told in it."""
    _mark(op, [op.out_tensor], Loss(here(op.name), reason))


def follow_losses(
    op: Op, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], pinned: Sequence[Loss]
) -> None:
    """What becomes of losses among the inputs of an operation, and of what it pinned.

    Args:
        op: The operation, its outputs labelled.
        inputs: The tensors that it was given.
        outputs: The tensors that it returned.
        pinned: Where and why its own rule pinned units.
    """
    lost = op.tracer.lost
    held = [lost[storage_id(tensor)] for tensor in inputs if storage_id(tensor) in lost] if lost else []
    if not held and not pinned:
        return
    for tensor in inputs if held else ():
        units = op.tracer.units(tensor)
        if units is not None:
            op.tracer.recording.losses.append((unit_ids(units), here(op.name), held[0]))
    _mark(op, [tensor for tensor in outputs if op.tracer.units(tensor) is None], [*held, *pinned][0])


def _mark(op: Op, tensors: Sequence[torch.Tensor], loss: Loss) -> None:
    for tensor in tensors:
        op.tracer.hold(tensor)
        op.tracer.lost.setdefault(storage_id(tensor), loss)
