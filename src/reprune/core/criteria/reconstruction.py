"""Reconstruction: the unit goes that costs its consumers least once the others take over for it.

Optimal brain surgeon (Hassibi and Stork, 1993) on responses: with C the second moments of what a consumer reads and G
its weights, one row per feature, removing feature u and rebuilding it from all others raises the consumer's squared
error by ‖G_u‖² / [C⁻¹]_uu. The cheapest unit goes; then G takes the rebuilt part over, C⁻¹ forgets the feature, and the
next one is chosen. The cost of a unit is the sum over its consumers.

All layers lose units in one sequence: a consumer that reads several of them (both directions of a layer, a skip
connection) rebuilds a unit only from what the others have left by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reprune.core.criteria.base import Criterion, Group, Ranking
from reprune.core.evidence.readings import Reading

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

    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Remove the units of one group, all others staying whole. See `Criterion.rank`."""
        return self.rank_all([[group]], [1.0], rng)[0][0]

    def rank_all(
        self, sets: Sequence[Sequence[Group]], savings: Sequence[float], rng: np.random.Generator
    ) -> list[list[Ranking]]:
        """Remove units wherever they cost least for what they save. See `Criterion.rank_all`."""
        removals = iter(self._removals([group for together in sets for group in together]))
        left = [[next(removals) for _ in together] for together in sets]
        prices = dict(enumerate(map(_price, left, savings)))
        while prices:
            cheapest = min(prices, key=prices.__getitem__)
            touched = {entry for removal in left[cheapest] for entry in removal.remove()}
            if not left[cheapest][0].alive.any():
                del prices[cheapest]
            for index in prices:
                # The one that lost a unit looks for its next one, even if nothing reads it.
                if index == cheapest or any(touched & removal.inputs.keys() for removal in left[index]):
                    prices[index] = _price(left[index], savings[index])
        return [[removal.ranking for removal in together] for together in left]

    def _removals(self, groups: Sequence[Group]) -> list[Removal]:
        """The units of every group, bound to one elimination for all consumers that read the same features."""
        places: dict[Reading, dict[int, Places]] = {}
        for number, group in enumerate(groups):
            for reading, found in (pair for layer in group for pair in layer.readings):
                held = places.setdefault(reading, {})
                held[number] = np.concatenate([held[number], found], axis=1) if number in held else found
        removals = [Removal(group[0].units) for group in groups]
        alike: dict[tuple[object, ...], list[Reading]] = {}
        for reading, by_group in places.items():
            same = tuple((number, found.tobytes()) for number, found in by_group.items())
            alike.setdefault((reading.source, same), []).append(reading)
        for readings in alike.values():
            # Their weights stand side by side in G.
            gram = np.sum([reading.gram for reading in readings], axis=0)
            elimination = Elimination.start(readings[0].moments.matrix, gram, self.ridge)
            for number, found in places[readings[0]].items():
                removals[number].inputs[elimination] = found
        return removals


class Removal:
    """The units of one group, leaving one after the other.

    Attributes:
        alive: Which are left (units).
        inputs: What reads them, each with the positions of every unit (units × positions).
        ranking: What has left so far; complete when none is left.
    """

    def __init__(self, units: int) -> None:
        self.alive = np.ones(units, dtype=bool)
        self.inputs: dict[Elimination, Places] = {}
        self.ranking = Ranking(np.zeros(units, dtype=np.int64), np.zeros(units))
        self._unit, self._cost = 0, 0.0

    def look(self) -> float:
        """What the unit costs that costs least: `remove` takes that one."""
        units = np.flatnonzero(self.alive)
        costs = np.zeros(len(units))
        for elimination, places in self.inputs.items():
            costs += elimination.costs()[places[units]].sum(axis=1)
        place = int(np.argmin(costs))
        self._unit, self._cost = int(units[place]), max(float(costs[place]), 0.0)
        return self._cost

    def remove(self) -> Iterable[Elimination]:
        """Remove the unit that was found cheapest; returns what read it."""
        self.ranking.order[-int(self.alive.sum())] = self._unit
        self.ranking.scores[self._unit] = self._cost
        self.alive[self._unit] = False
        for elimination, places in self.inputs.items():
            for place in places[self._unit].tolist():
                elimination.remove(place)
        return self.inputs


def _price(together: Sequence[Removal], saving: float) -> float:
    """What the next unit of each of these groups costs, for what they save."""
    return sum(removal.look() for removal in together) / saving


class Elimination:
    """C⁻¹ and G Gᵀ of one consumer while features leave one by one.

    Only their diagonals and one row are needed at each step, so updates are collected and applied in blocks: a matrix
    product each instead of a pass over both matrices per feature. What has gone is cut out at the same time.
    """

    BLOCK = 64

    def __init__(self, inverse: Matrix, gram: Matrix) -> None:
        self._features = len(inverse)
        self._hold(np.arange(len(inverse)), inverse, gram)
        self._diagonal, self._norms = inverse.diagonal().copy(), gram.diagonal().copy()

    @classmethod
    def start(cls, moments: Matrix, gram: Matrix, ridge: float) -> Elimination:
        """From second moments (n × n) and G Gᵀ (n × n)."""
        # Where nothing arrives, nothing is lost either: the least number that has an inverse.
        level = ridge * float(np.mean(moments.diagonal())) or np.finfo(np.float64).tiny
        inverse = np.asarray(np.linalg.inv(moments + level * np.eye(len(moments))), dtype=np.float64)
        return cls(inverse, gram)

    def costs(self) -> Matrix:
        """Rise of the squared error with each feature's removal (features); zero for those that are gone."""
        costs = np.zeros(self._features)
        costs[self._live] = np.divide(self._norms, self._diagonal, out=np.zeros_like(self._norms), where=~self._gone)
        return costs

    def remove(self, feature: int) -> None:
        """Remove a feature."""
        row = int(np.searchsorted(self._live, feature))
        columns, gains, twins = (held[: self._held] for held in (self._columns, self._gains, self._twins))
        column = self._inverse[row] - columns[:, row] @ columns
        gram = self._gram[row] + twins[:, row] @ gains + gains[:, row] @ twins
        pivot = column[row]
        # What the others take over from this feature: A = −C⁻¹_·u / C⁻¹_uu. Where features are gone it is never read.
        gain = -column / pivot
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

    def _hold(self, live: Places, inverse: Matrix, gram: Matrix) -> None:
        """Start a block: the features that are left, in order, and no updates yet (one per row)."""
        self._live, self._inverse, self._gram = live, inverse, gram
        self._gone = np.zeros(len(live), dtype=bool)
        self._held = 0
        self._columns, self._gains, self._twins = (np.zeros((self.BLOCK, len(live))) for _ in range(3))

    def _flush(self) -> None:
        stay = np.flatnonzero(~self._gone)
        among = np.ix_(stay, stay)
        columns, gains, twins = (held[:, stay] for held in (self._columns, self._gains, self._twins))
        product = gains.T @ twins
        self._diagonal, self._norms = self._diagonal[stay], self._norms[stay]
        self._hold(
            self._live[stay], self._inverse[among] - columns.T @ columns, self._gram[among] + product + product.T
        )
