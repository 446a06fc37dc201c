"""Batches cut down: a few sequences, and not all of very many steps, show how a model is wired as well as all do.

Which axis holds the sequences is found by trying: the model answers some of them as it answers them among others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from reprune.core.evidence.passes import Forward
from reprune.torch.tracing.leaves import Path, items, leaves, replaced
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.running.copies import duplicate
from reprune.torch.tracing.running.isolation import run_apart

SEQUENCES = 3
"""As many are traced: sizes of one and two mean something else in many models."""
STEPS = 256
"""As many are traced of more than twice as many."""
Answers = Callable[[Any], list[torch.Tensor] | None]


@dataclass(frozen=True)
class Cut:
    """How to take some sequences out of a batch.

    Attributes:
        axis: The axis of the largest tensor that holds them, 0 or 1; None where that is not known.
    """

    axis: int | None = None

    def __call__(self, batch: Any, count: int) -> Any:
        """So many sequences, from all over the batch and in its order; the whole batch where there are no more."""
        if self.axis is None or _size(batch, self.axis) <= count:
            return batch
        return _taken(batch, self.axis, _spread(_size(batch, self.axis), count))


def shortened(model: nn.Module, batch: Any, forward: Forward | None = None) -> tuple[Any, Cut]:
    """A batch of few sequences and not too many steps, and how to take some sequences out of others.

    What cannot be cut so that the model runs on the rest is left whole: lengths and positions of a batch forbid to
    take steps away, packed sequences to take anything.

    Args:
        model: A private copy.
        batch: One batch, as the model takes it.
        forward: Replaces `model(batch)`.
    """

    tried: list[Any] = []

    def answers(part: Any) -> list[torch.Tensor] | None:
        tried.append(part)
        try:
            with torch.no_grad():
                return list(tensors_in(run_apart(duplicate(model, share=True), part, forward)))
        except Exception:  # Whatever the user's code raises on a batch that it was not given.
            return None

    cut = Cut() if _holds_packs(batch) else _found(batch, answers)
    few = batch if cut.axis is None else _fewer_steps(cut(batch, SEQUENCES), 1 - cut.axis, answers)
    if tried:
        answers(few)  # What a model keeps outside of itself, in a global variable, is of the shape to be traced.
    return few, cut


def _found(batch: Any, answers: Answers) -> Cut:
    """Where the sequences are, found on a part of a large batch."""
    for axis in (1, 0):
        batch = _fewer_steps(batch, axis, answers)
    for axis in (0, 1):
        if _size(batch, axis) >= 2 * SEQUENCES:
            # Every second one of several.
            several, few = (answers(Cut(axis)(batch, count)) for count in (2 * SEQUENCES - 1, SEQUENCES))
            if several and few and len(several) == len(few) and all(map(_same, several, few)):
                return Cut(axis)
    return Cut()


def _fewer_steps(batch: Any, axis: int, answers: Answers) -> Any:
    """The first steps along an axis, if there are very many and the model takes them."""
    if _size(batch, axis) <= 2 * STEPS:
        return batch
    fewer = _taken(batch, axis, torch.arange(STEPS))
    pairs = zip(leaves(batch), leaves(fewer), strict=True)
    if all(whole.ndim > 1 and whole.shape != part.shape for (_, whole), (_, part) in pairs):
        found = answers(fewer)
        # What is not a number agrees with everything, and shows nothing.
        if found and not any(bool(output.isnan().any()) for output in found):
            return fewer
    return batch


def _same(several: torch.Tensor, few: torch.Tensor) -> bool:
    """Whether an output for a few sequences holds what every second of several has: on one axis, on its own or not."""
    axes = [d for d in range(few.ndim) if several.ndim == few.ndim and several.shape[d] != few.shape[d]]
    if len(axes) != 1 or several.shape[axes[0]] * SEQUENCES != few.shape[axes[0]] * (2 * SEQUENCES - 1):
        return False
    several, few = several.movedim(axes[0], 0), few.movedim(axes[0], 0)
    each, rest = len(few) // SEQUENCES, few.shape[1:]
    ways = (
        several.reshape(2 * SEQUENCES - 1, each, *rest)[::2].reshape(few.shape),
        several.reshape(each, 2 * SEQUENCES - 1, *rest)[:, ::2].reshape(few.shape),
    )
    if not few.is_floating_point():
        return any(torch.equal(way, few) for way in ways)
    scale = float(few.detach().nan_to_num(posinf=0, neginf=0).abs().max()) if few.numel() else 0.0
    return any(torch.allclose(way, few, rtol=1e-3, atol=1e-4 * scale) for way in ways)


def _size(batch: Any, axis: int) -> int:
    """The size of an axis of the largest tensor."""
    largest = max((tensor for _, tensor in leaves(batch)), key=torch.Tensor.numel, default=None)
    return largest.shape[axis] if largest is not None and largest.ndim > axis else 0


def _spread(size: int, count: int) -> torch.Tensor:
    return torch.arange(count) * (size - 1) // (count - 1)


def _taken(batch: Any, axis: int, stay: torch.Tensor) -> Any:
    """These entries of an axis; tensors that have it elsewhere (states, lengths) hand over the same ones there."""
    size = _size(batch, axis)

    def take(_: Path, tensor: torch.Tensor) -> torch.Tensor:
        at = next((d for d in (axis, 0, 1) if d < tensor.ndim and tensor.shape[d] == size), None)
        return tensor if at is None else tensor.detach().index_select(at, stay.to(tensor.device))

    return replaced(batch, take)


def _holds_packs(value: Any, depth: int = 4) -> bool:
    held = items(value) if depth else []
    return isinstance(value, PackedSequence) or any(_holds_packs(item, depth - 1) for _, item in held)
