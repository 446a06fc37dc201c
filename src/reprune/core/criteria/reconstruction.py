"""Reconstruction: the unit goes that costs its consumers least once the others take over for it.

Optimal brain surgeon (Hassibi and Stork, 1993) on responses: with C the second moments of what a consumer reads and G
its weights, one row per feature, removing feature u and rebuilding it from all others raises the consumer's squared
error by ‖G_u‖² / [C⁻¹]_uu. The cheapest unit goes; then G takes the rebuilt part over, C⁻¹ forgets the feature, and the
next one is chosen. The cost of a unit is the sum over its consumers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reprune.core.criteria.base import Criterion, Ranking
from reprune.core.evidence import LayerEvidence
from reprune.core.readings import Reading

Matrix = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Reconstruction(Criterion):
    """score(u) = Σ over consumers of ‖G_u‖² / [C⁻¹]_uu at the moment u goes.

    Attributes:
        ridge: Added to C, as a share of its mean diagonal, so that it can be inverted.
    """

    ridge: float = 1e-4
    needs_statistics = True
    needs_readings = True

    def rank(self, group: Sequence[LayerEvidence], rng: np.random.Generator) -> Ranking:
        """Remove units one after the other. See `Criterion.rank`."""
        inputs = self._inputs(group)
        units = group[0].units
        order = np.zeros(units, dtype=np.int64)
        scores = np.zeros(units)
        alive = np.ones(units, dtype=bool)
        for step in range(units):
            cost = np.where(alive, np.sum([entry.costs() for entry in inputs], axis=0), np.inf)
            unit = int(np.argmin(cost))
            order[step], scores[unit], alive[unit] = unit, max(cost[unit], 0.0), False
            for entry in inputs:
                entry.remove(unit)
        return Ranking(order, scores)

    def _inputs(self, group: Sequence[LayerEvidence]) -> list[Elimination]:
        """One elimination for all consumers that read the same features: their weights stand side by side in G."""
        held: dict[tuple[object, ...], tuple[Reading, Matrix, Places]] = {}
        for reading, places in (pair for layer in group for pair in layer.readings):
            key = (reading.source, places.tobytes())
            gram = held[key][1] + reading.gram if key in held else reading.gram
            held[key] = (reading, gram, places)
        return [
            Elimination.start(reading.moments.matrix, gram, places, self.ridge)
            for reading, gram, places in held.values()
        ]


class Elimination:
    """C⁻¹ and G Gᵀ of one consumer while features leave one by one.

    Only their diagonals and one row are needed at each step, so updates are collected and applied in blocks: a matrix
    product each instead of a pass over both matrices per feature. What has gone is cut out at the same time.
    """

    BLOCK = 64

    def __init__(self, inverse: Matrix, gram: Matrix, places: Places) -> None:
        self._places = places
        self._features = len(inverse)
        self._hold(np.arange(len(inverse)), inverse, gram)
        self._diagonal, self._norms = inverse.diagonal().copy(), gram.diagonal().copy()

    @classmethod
    def start(cls, moments: Matrix, gram: Matrix, places: Places, ridge: float) -> Elimination:
        """From second moments (n × n), G Gᵀ (n × n) and the positions of every unit (units × positions)."""
        level = ridge * float(np.mean(moments.diagonal())) or 1.0
        inverse = np.asarray(np.linalg.inv(moments + level * np.eye(len(moments))), dtype=np.float64)
        return cls(inverse, gram, places)

    def costs(self) -> Matrix:
        """Rise of the squared error with each unit's removal (units)."""
        single = np.zeros(self._features)
        single[self._live] = np.divide(self._norms, self._diagonal, out=np.zeros_like(self._norms), where=~self._gone)
        return np.asarray(single[self._places].sum(axis=1))

    def remove(self, unit: int) -> None:
        """Remove the positions of a unit."""
        for place in self._places[unit].tolist():
            self._remove_feature(int(np.searchsorted(self._live, place)))

    def _hold(self, live: Places, inverse: Matrix, gram: Matrix) -> None:
        """Start a block: the features that are left, in order, and no updates yet (one per row)."""
        self._live, self._inverse, self._gram = live, inverse, gram
        self._gone = np.zeros(len(live), dtype=bool)
        self._held = 0
        self._columns, self._gains, self._twins = (np.zeros((self.BLOCK, len(live))) for _ in range(3))

    def _remove_feature(self, row: int) -> None:
        columns, gains, twins = (held[: self._held] for held in (self._columns, self._gains, self._twins))
        column = self._inverse[row] - columns[:, row] @ columns
        gram = self._gram[row] + twins[:, row] @ gains + gains[:, row] @ twins
        pivot = column[row]
        # What the others take over from this feature: A = −C⁻¹_·u / C⁻¹_uu.
        gain = -column / pivot
        gain[self._gone] = 0.0
        gain[row] = 0.0
        twin = gram + 0.5 * gram[row] * gain
        self._norms += 2.0 * gain * twin
        scaled = column / np.sqrt(pivot)
        self._diagonal -= scaled**2
        for held, update in ((self._columns, scaled), (self._gains, gain), (self._twins, twin)):
            held[self._held] = update
        self._gone[row] = True
        self._held += 1
        if self._held == self.BLOCK:
            self._flush()

    def _flush(self) -> None:
        stay = np.flatnonzero(~self._gone)
        among = np.ix_(stay, stay)
        columns, gains, twins = (held[:, stay] for held in (self._columns, self._gains, self._twins))
        product = gains.T @ twins
        self._diagonal, self._norms = self._diagonal[stay], self._norms[stay]
        self._hold(
            self._live[stay], self._inverse[among] - columns.T @ columns, self._gram[among] + product + product.T
        )
