"""Numbers for all units of a model, so that a value of each can be gathered from, and spread over, its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprune.core.layers import Slot, Structure

Places = NDArray[np.int64]


class UnitIndex:
    """Number of every unit of a model, coupled units having one number, at every position of every tensor axis.

    Attributes:
        size: How many units there are; positions that hold none have this number.
        groups: First number and units of every group of coupled layers that can be pruned.
    """

    def __init__(self, structure: Structure) -> None:
        self.groups: dict[tuple[str, ...], tuple[int, int]] = {}
        self.size = 0
        first = {}
        for group in structure.index_coupled:
            if all(name in structure.prunable for name in group):
                units = structure.layers[group[0]].units
                self.groups[group] = (self.size, units)
                first.update(dict.fromkeys(group, self.size))
                self.size += units
        self._first = first

    def of(self, slot: Slot) -> Places:
        """Numbers of the units along a slot's axis."""
        found = np.full(slot.size, self.size, dtype=np.int64)
        for span in slot.spans:
            if span.layer in self._first:
                numbers = self._first[span.layer] + span.unit + np.arange(span.units)
                found[span.start : span.start + span.units * span.each] = np.repeat(numbers, span.each)
        return found

    def by_layer(self, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Values of all units (size) as arrays by layer."""
        return {name: values[first : first + units] for group, (first, units) in self.groups.items() for name in group}

    def kept(self, kept: Mapping[str, Sequence[int]]) -> Places:
        """Numbers of the units that stay, in order."""
        numbers = [first + np.asarray(kept[group[0]], dtype=np.int64) for group, (first, _) in self.groups.items()]
        return np.concatenate(numbers) if numbers else np.zeros(0, dtype=np.int64)

    def axes(self, structure: Structure, slots: Sequence[Slot]) -> dict[str, list[tuple[int, Places]]]:
        """For every parameter that one of the slots names: its axes, and the number of the unit at each position."""
        found: dict[str, list[tuple[int, Places]]] = {}
        for slot in slots:
            if slot.tensor not in structure.buffers:
                found.setdefault(slot.tensor, []).append((slot.axis, self.of(slot)))
        return found


def shared_places(axes: Sequence[tuple[int, Places]], nobody: int) -> tuple[Places, Places]:
    """Positions at which both axes of a tensor name the same unit: the diagonal of a recurrent matrix."""
    rows, columns = (numbers for _, numbers in axes)
    pairs = [np.zeros((2, 0), dtype=np.int64)]
    for unit in np.setdiff1d(np.intersect1d(rows, columns), [nobody]):
        grid = np.meshgrid(np.flatnonzero(rows == unit), np.flatnonzero(columns == unit), indexing="ij")
        pairs.append(np.stack(grid).reshape(2, -1))
    found = np.concatenate(pairs, axis=1)
    return found[0], found[1]
