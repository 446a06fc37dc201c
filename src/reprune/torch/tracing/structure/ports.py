"""From the labels of a state's elements to a `Port`: the axis of the units, and that on which layers are stacked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from reprune.core.layers import Port, Span
from reprune.torch.tracing.labels import NONE, Ids, squeeze_constant
from reprune.torch.tracing.recording import Labelled

Spans = Callable[[Ids], tuple[Span, ...]]


def port(state: Labelled, classes: Callable[[Ids], Ids], spans: Spans) -> Port | None:
    """The port of a tensor with these labels, or None when it holds no units, or not along one axis.

    Args:
        state: Path and labels.
        classes: The class of each label, NONE for those that are no units of a layer.
        spans: Runs of positions on a line of classes.
    """
    flat = classes(state.labels.reshape(-1).cpu().numpy())
    shape = state.labels.shape
    small = squeeze_constant(torch.from_numpy(flat).view(shape))
    moving = [axis for axis in range(small.ndim) if small.size(axis) > 1]
    if len(moving) not in (1, 2):
        return None
    rows = small.squeeze().numpy() if len(moving) == 2 else small.reshape(1, -1).numpy()
    best: Port | None = None
    for axis, along, lines in ((moving[-1], moving[0], rows), (moving[0], moving[-1], rows.T)):
        pieces = tuple(spans(line) for line in lines)
        found = Port(state.path, axis, shape[axis], pieces, along if len(moving) == 2 else None)
        if all(pieces) and all(_distinct(line) for line in lines) and (best is None or _runs(found) < _runs(best)):
            best = found
    return best


def _distinct(line: Ids) -> bool:
    """Whether a line names more than one unit: an axis along which they change."""
    units = line[line != NONE]
    return len(np.unique(units)) > 1 or line.size == 1


def _runs(found: Port) -> int:
    return sum(len(spans) for spans in found.pieces)
