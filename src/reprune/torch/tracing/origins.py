"""Where elements came from: tensors that the caller hands in, or that a module kept, and the units that they meet.

Each element of such a tensor carries a label of its own, below those of the weights' elements. Movement keeps it, so
does arithmetic with anything but units. Where it meets units or a weight that reads it, the label that it met is noted
beside the tensor: so it shows which axis of which tensor is a state of which layer, however it got there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from reprune.core.layers import Site
from reprune.torch.tracing.labels import NONE, TAG, Ids, compact, varies
from reprune.torch.tracing.leaves import Path
from reprune.torch.tracing.location import here

Meeting = Literal["state", "beside", "read"]
"""Taken as an initial state, combined element by element, or read by a weight."""


_MOST = 8
"""Tables of what elements were combined with, at most."""


@dataclass
class Source:
    """A tensor from outside a call, and what its elements met.

    Attributes:
        path: Where it is among the arguments of `forward`, or in the model (see `Port.path`).
        shape: Its shape.
        first: The label of its first element, counted downwards.
        held: Whether a module keeps it; an argument otherwise.
        met: For each kind of meeting the first label that each element met (elements), NONE for the others.
        besides: All labels that its elements were combined with, in as many tables (elements) as it takes: a gate that
            resets a state may come before the one that keeps it.
        sites: Where that was first.
        read_by: For each weight that reads it the labels of its axis that the elements met.
    """

    path: Path
    shape: torch.Size
    first: int
    held: bool
    met: dict[Meeting, Ids] = field(default_factory=dict)
    besides: list[Ids] = field(default_factory=list)
    sites: dict[Meeting, Site] = field(default_factory=dict)
    read_by: dict[str, Ids] = field(default_factory=dict)

    def labels(self, kind: Meeting) -> Ids:
        """What its elements met in this way (elements), NONE where nothing."""
        found = self.met.get(kind)
        return np.zeros(self.shape.numel(), dtype=np.int64) if found is None else self._completed(found)

    def met_beside(self, labels: Ids, roots: Callable[[Ids], Ids]) -> NDArray[np.bool_]:
        """Which of its elements were combined with units of these classes (elements), at some time."""
        found = np.zeros(labels.shape, dtype=bool)
        for table in self.besides:
            found |= roots(self._completed(table)) == labels
        return found

    def read(self, reader: str) -> Ids:
        """What its elements met of the axis of this weight (elements), NONE where nothing."""
        return self._completed(self.read_by[reader])

    def _completed(self, table: Ids) -> Ids:
        """Elements that met nothing, as those that were overwritten, taken for what others on their line met.

        A line along which all others met the same lies across the units: rows of a batch, say.
        """
        lost = np.all([found == NONE for found in self.met.values()], axis=0).reshape(self.shape)
        full = table.reshape(self.shape)
        for axis in range(full.ndim) if lost.any() else ():
            highest = full.max(axis, keepdims=True)
            lowest = np.where(full == NONE, highest, full).min(axis, keepdims=True)
            full = np.where(lost & (full == NONE) & (highest == lowest), highest, full)
        return full.reshape(-1)


class Origins:
    """The sources of a trace.

    Args:
        first: The first number that no weight's element uses.
    """

    def __init__(self, first: int) -> None:
        self._first = self._next = first
        self.sources: list[Source] = []

    def add(self, path: Path, tensor: torch.Tensor, *, held: bool) -> torch.Tensor:
        """A new source; returns labels for its elements."""
        source = Source(path, tensor.shape, self._next, held)
        self.sources.append(source)
        self._next += tensor.numel()
        return -torch.arange(source.first, self._next, device=tensor.device).view(tensor.shape)

    def of(self, labels: torch.Tensor | None) -> torch.Tensor | None:
        """The part of a tensor's labels that names elements of sources, or None when it has none."""
        if labels is None or not self.sources:
            return None
        small = compact(labels)
        mine = small <= -self._first
        return torch.where(mine, small, NONE).expand(labels.shape) if bool(mine.any()) else None

    def meet(self, kind: Meeting, origins: torch.Tensor | None, labels: torch.Tensor | Ids, reader: str = "") -> None:
        """Elements of sources meet labels at the same position; the two broadcast.

        Elements that are repeated along an axis on which the labels vary do not lie along it: they are passed over.
        """
        if origins is None:
            return
        met = torch.as_tensor(labels, device=origins.device)
        met = torch.broadcast_tensors(met, origins)[0]  # type: ignore[no-untyped-call]
        small = compact(origins)
        small = small.view(*[1] * (met.ndim - small.ndim), *small.shape)
        if any(small.size(d) < met.size(d) and varies(met, d) for d in range(met.ndim)):
            return
        met = torch.where((met > NONE) & (met < TAG), met, NONE)
        for d in range(met.ndim):
            met = met.narrow(d, 0, 1) if small.size(d) == 1 and met.size(d) > 1 else met
        ids, met = torch.broadcast_tensors(-small, met)  # type: ignore[no-untyped-call]
        found, values = ids.reshape(-1).cpu().numpy(), met.reshape(-1).cpu().numpy()
        chosen = (found > NONE) & (values > NONE)
        found, values = found[chosen], values[chosen]
        if len(found):
            self._note(kind, found, values, reader)

    def _note(self, kind: Meeting, found: Ids, values: Ids, reader: str) -> None:
        lowest, highest = int(found.min()), int(found.max())
        for source in self.sources:
            size = source.shape.numel()
            if not lowest < source.first + size or highest < source.first:
                continue
            mine = (found >= source.first) & (found < source.first + size)
            if not mine.any():
                continue
            source.sites.setdefault(kind, here(kind))
            places = found[mine] - source.first
            tables = [source.met.setdefault(kind, np.zeros(size, dtype=np.int64))]
            if kind == "beside":
                _add(source.besides, places, values[mine], size)
            if reader:
                tables.append(source.read_by.setdefault(reader, np.zeros(size, dtype=np.int64)))
            for table in tables:
                table[places] = np.where(table[places] == NONE, values[mine], table[places])


def _add(tables: list[Ids], places: Ids, values: Ids, size: int) -> None:
    """Enter values at places of the first table that has no others there."""
    for table in tables:
        if (table[places] == values).all() or (table[places] == NONE).all():
            table[places] = values
            return
    if len(tables) < _MOST:
        tables.append(np.zeros(size, dtype=np.int64))
        tables[-1][places] = values
