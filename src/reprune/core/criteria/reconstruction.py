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
    product each instead of a pass over both matrices per feature.
    """

    BLOCK = 48

    def __init__(self, inverse: Matrix, gram: Matrix, places: Places) -> None:
        self._inverse, self._gram, self._places = inverse, gram, places
        self._diagonal, self._norms = inverse.diagonal().copy(), gram.diagonal().copy()
        self._columns: list[Matrix] = []
        self._gains: list[tuple[Matrix, Matrix]] = []
        self._gone = np.zeros(len(inverse), dtype=bool)

    @classmethod
    def start(cls, moments: Matrix, gram: Matrix, places: Places, ridge: float) -> Elimination:
        """From second moments (n × n), G Gᵀ (n × n) and the positions of every unit (units × positions)."""
        level = ridge * float(np.mean(moments.diagonal())) or 1.0
        inverse = np.asarray(np.linalg.inv(moments + level * np.eye(len(moments))), dtype=np.float64)
        return cls(inverse, gram.copy(), places)

    def costs(self) -> Matrix:
        """Rise of the squared error with each unit's removal (units)."""
        usable = ~self._gone
        single = np.divide(self._norms, self._diagonal, out=np.zeros_like(self._norms), where=usable)
        return np.asarray(single[self._places].sum(axis=1))

    def remove(self, unit: int) -> None:
        """Remove the positions of a unit."""
        for place in self._places[unit].tolist():
            self._remove_feature(place)

    def _remove_feature(self, place: int) -> None:
        column = self._inverse[:, place].copy()
        gram = self._gram[:, place].copy()
        for done in self._columns:
            column -= done * done[place]
        for gain, twin in self._gains:
            gram += gain * twin[place] + twin * gain[place]
        pivot = column[place]
        # What the others take over from this feature: A = −C⁻¹_·u / C⁻¹_uu.
        gain = -column / pivot
        gain[self._gone] = 0.0
        gain[place] = 0.0
        twin = gram + 0.5 * gram[place] * gain
        self._norms += 2.0 * gain * twin
        scaled = column / np.sqrt(pivot)
        self._diagonal -= scaled**2
        self._columns.append(scaled)
        self._gains.append((gain, twin))
        self._gone[place] = True
        if len(self._columns) == self.BLOCK:
            self._flush()

    def _flush(self) -> None:
        columns = np.stack(self._columns, axis=1)
        self._inverse -= columns @ columns.T
        gains, twins = (np.stack(part, axis=1) for part in zip(*self._gains, strict=True))
        product = gains @ twins.T
        self._gram += product + product.T
        self._columns, self._gains = [], []
