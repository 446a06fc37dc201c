"""Labels: integers that name the unit which a position on an axis holds, and their coupling by union-find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reprune.core.layers import Counts, Extent, Slot, spans_of

Ids = NDArray[np.int64]

# Labels: 0 is a value that belongs to nobody and must stay; -1 is padding, which any width fits; positive ones name
# positions that can go: hidden units, and outputs of weights that may have to follow units they are added to.
NONE = 0
PADDING = -1


@dataclass(frozen=True)
class Shadow:
    """Labels of a tensor: `labels[i]` names what position `i` of axis `axis` holds, all along the other axes.

    `silent`: units whose own weights are zero are zero here too (not after a sigmoid, which makes them ½).
    """

    axis: int
    labels: Ids
    silent: bool = True


class Couplings:
    """Labels, merged into classes of positions that must be removed together."""

    def __init__(self) -> None:
        self._parent = [NONE]
        self._member: list[tuple[str, int] | None] = [None]

    def new(self, count: int, layer: str = "") -> Ids:
        """Fresh labels (count), each in a class of its own: the units of `layer`, or positions that may follow."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        self._member.extend((layer, unit) if layer else None for unit in range(count))
        return np.arange(start, start + count)

    def name(self, labels: Ids, layer: str) -> None:
        """Make labels the units of a layer."""
        for unit, label in enumerate(labels.tolist()):
            self._member[label] = layer, unit

    def union(self, first: Ids, second: Ids) -> None:
        """Couple `first[i]` with `second[i]` for every i where both name something."""
        both = (first > NONE) & (second > NONE) & (first != second)
        for a, b in zip(first[both].tolist(), second[both].tolist(), strict=True):
            a, b = self._find(a), self._find(b)
            self._parent[max(a, b)] = min(a, b)

    def _find(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = label = self._parent[self._parent[label]]
        return label

    def roots(self, labels: Ids) -> Ids:
        """The class of each label; 0 for those that name nothing."""
        return np.array([self._find(label) if label > NONE else NONE for label in labels.tolist()], dtype=np.int64)

    def classes(self) -> dict[int, list[tuple[str, int]]]:
        """The units in every class that holds any, as `(layer, unit)`."""
        classes: dict[int, list[tuple[str, int]]] = {}
        for label, member in enumerate(self._member):
            if member is not None:
                classes.setdefault(self._find(label), []).append(member)
        return classes

    def member(self, label: int) -> tuple[str, int] | None:
        """The unit that a label names, as `(layer, unit)`; None for positions that only follow."""
        return self._member[label] if label > NONE else None


Units = Sequence[tuple[str, int] | None]


def extent_of(units: Units, sizes: Counts) -> Extent:
    """Length of an axis whose positions hold `units`, as a function of the units kept."""
    return Slot("", 0, len(units), "reads", spans_of(units)).extent(sizes)
