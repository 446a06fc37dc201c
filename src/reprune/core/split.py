"""Where units go is measured: a line search between allocations for the split whose answers are nearest.

An allocation lets units go in one fixed order. The share of all units that are gone when a unit goes is its time, and
allocations are blended by blending times: what lies between two of them shrinks every layer in order, too, and meets
the same budgets within the same bounds. The divergence along such a line is smooth, with one valley as a rule, that a
handful of small models finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Times = list[NDArray[np.float64]]

REFINED = 3
"""Splits that are tried in the valley, beyond the ends and the middles of the lines."""
FLAT = 1.05
"""A valley whose sides rise by less than this factor next to its best split is not searched any further."""


def times(thresholds: Sequence[NDArray[np.float64]], layers: Sequence[int]) -> Times:
    """Share of all units that are gone when a block loses its first, second, … unit.

    Args:
        thresholds: Thresholds of an allocation, block by block (units).
        layers: Number of layers in each block.

    Example:
        >>> times([np.array([1.0, 4.0]), np.array([2.0, 3.0])], [1, 1])
        [array([0.125, 0.875]), array([0.375, 0.625])]
    """
    order = np.argsort(np.concatenate(thresholds), kind="stable")
    weights = np.concatenate(
        [np.full(len(block), float(count)) for block, count in zip(thresholds, layers, strict=True)]
    )
    gone = np.empty(len(order))
    gone[order] = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    return np.split(gone, np.cumsum([len(block) for block in thresholds])[:-1])


def search(origin: Times, ends: Sequence[Times], measure: Callable[[Times], float]) -> Times:
    """The best of the splits that are tried on the lines from an origin to some ends.

    Args:
        origin: Times of the allocation where all lines begin.
        ends: Those of the allocations where they end.
        measure: How far a model with these times is from the dense one; called once for each split that is tried.

    Returns:
        The times of the best one: never worse than the origin and the ends.
    """
    start = measure(origin)
    lines = []
    for end in ends:
        line = _Line(origin, end, measure)
        line.known[0.0] = start
        for place in (1.0, 0.5):
            line.look(place)
        lines.append(line)
    best = min(lines, key=lambda line: min(line.known[1.0], line.known[0.5]))
    for _ in range(REFINED):
        if best.flat:
            break
        best.look(best.next())
    return best.blend(min(best.known, key=best.known.__getitem__))


class _Line:
    """Splits on the line between two allocations; `known` holds what was measured, by place from 0 to 1."""

    def __init__(self, start: Times, end: Times, measure: Callable[[Times], float]) -> None:
        self.known: dict[float, float] = {}
        self._start, self._end, self._measure = start, end, measure

    def blend(self, place: float) -> Times:
        """Times of a split."""
        return [(1 - place) * start + place * end for start, end in zip(self._start, self._end, strict=True)]

    def look(self, place: float) -> None:
        """Measure a split."""
        self.known[place] = self._measure(self.blend(place))

    @property
    def flat(self) -> bool:
        """Whether the splits beside the best one are about as good."""
        best, beside = self._valley()
        return all(self.known[place] <= FLAT * self.known[best] for place in beside)

    def next(self) -> float:
        """The middle of the wider of the gaps beside the best split, where its lower neighbour is nearer to it."""
        best, beside = self._valley()
        other = max(beside, key=lambda place: (abs(place - best), -self.known[place]))
        return (best + other) / 2

    def _valley(self) -> tuple[float, list[float]]:
        """The best split and those beside it, by place."""
        places = sorted(self.known)
        at = places.index(min(self.known, key=self.known.__getitem__))
        return places[at], [places[near] for near in (at - 1, at + 1) if 0 <= near < len(places)]
