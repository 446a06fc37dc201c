"""Correlation: the unit goes that is most correlated with the units still there.

The filter selection of Principal Filter Analysis: Suau et al., "Filter Distillation for Network Compression",
WACV 2020, section 3. Its authors' implementation (DNIKit) has two rules. *Sum*: the unit goes whose absolute Pearson
correlations with all units left have the largest sum; of units with equal sums, the one with the largest single
correlation. *Max*: of the two units with the largest correlation of all, the one goes whose next largest is larger. In
both, units that never respond go first, and correlations with a unit that is gone do not count any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reprune.core.criteria.base import Criterion, Group, Ranking

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Correlation(Criterion):
    """At each step the most correlated unit goes; its score is the step at which it does.

    Attributes:
        by: `sum` of the absolute correlations with all units left, or their `max`.

    Example:
        >>> Correlation(by="max").needs_statistics
        True
    """

    by: Literal["sum", "max"] = "sum"
    needs_statistics = True

    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Remove units one after the other; a group goes by its mean correlations. See `Criterion.rank`."""
        units = group[0].units
        dead = np.all([layer.covariance.diagonal() <= 0.0 for layer in group], axis=0)
        left = np.mean([correlations(layer.covariance) for layer in group], axis=0)
        alive = np.ones(units, dtype=bool)
        order = np.zeros(units, dtype=np.int64)
        sums = left.sum(axis=1)
        for step in range(units):
            candidates = alive & dead if (alive & dead).any() else alive
            unit = _most(left, sums, candidates, self.by)
            order[step], alive[unit] = unit, False
            sums -= left[unit]
            left[unit] = left[:, unit] = 0.0
        scores = np.zeros(units)
        scores[order] = np.arange(units)
        return Ranking(order, scores)


def correlations(covariance: Matrix) -> Matrix:
    """Absolute Pearson correlations (units × units), with zeros for a unit with itself and for dead units.

    Example:
        >>> correlations(np.array([[4.0, -1.0], [-1.0, 1.0]])).tolist()
        [[0.0, 0.5], [0.5, 0.0]]
    """
    spread = np.sqrt(np.clip(covariance.diagonal(), 0.0, None))
    scale = spread[:, None] * spread[None, :]
    found = np.abs(np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0))
    np.fill_diagonal(found, 0.0)
    return np.asarray(found)


def _most(left: Matrix, sums: Matrix, candidates: NDArray[np.bool_], by: str) -> int:
    """The next unit to go. Values that differ by rounding alone are equal; the last word is the index."""
    places = np.flatnonzero(candidates)
    if by == "sum":
        first, second = sums[places], left[places].max(axis=1)
    else:
        largest = np.sort(left[places], axis=1)[:, -2:]
        first, second = largest[:, -1], largest[:, 0]
    close = first >= first.max() - 1e-9
    return int(places[close][np.argmax(np.round(second[close], 9))])
