"""Weiszfeld median: units nearest the exact geometric median of all units.

He et al. (FPGM, CVPR 2019, eq. 5) define the geometric median x* = argmin_x Σ_v ‖x − w_v‖ over the whole space. It has
no closed form; Weiszfeld's iteration (1937) finds it: x ← Σ w_v / ‖x − w_v‖ divided by Σ 1 / ‖x − w_v‖, with the step
of Vardi and Zhang ("The multivariate L1-median and associated data depth", PNAS 2000) where x meets a point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reprune.core.criteria.base import Criterion, Group, Ranking, rank_by
from reprune.core.evidence.moments import to_numpy

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Weiszfeld(Criterion):
    """score(u) = ‖w_u − x*‖ with the geometric median x* of the incoming gate weights.

    Attributes:
        iterations: At most this many steps of the iteration.
        tolerance: It stops when the median moves by less than this share of the mean distance to the points.

    Example:
        >>> Weiszfeld(iterations=50).tolerance
        1e-09
    """

    iterations: int = 1000
    tolerance: float = 1e-9

    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Rank by the distance to the median. See `Criterion.rank`."""
        scores = []
        for layer in group:
            points = to_numpy(layer.incoming)
            median = geometric_median_of(points, self.iterations, self.tolerance)
            scores.append(np.linalg.norm(points - median, axis=1))
        return rank_by(scores)


def geometric_median_of(points: Matrix, iterations: int = 1000, tolerance: float = 1e-9) -> Matrix:
    """The point with the least sum of Euclidean distances to `points` (n × d).

    Example:
        >>> geometric_median_of(np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).round(6).tolist()
        [0.0, 0.0]
    """
    median = points.mean(axis=0)
    for _ in range(iterations):
        distances = np.linalg.norm(points - median, axis=1)
        scale = float(distances.mean())
        met = distances <= 1e-12 * scale
        if met.all():
            break
        weights = np.divide(1.0, distances, out=np.zeros_like(distances), where=~met)
        target = weights @ points / weights.sum()
        # Where the median sits on points, they hold it back: it moves only if the others pull harder than they weigh.
        pull = float(np.linalg.norm((target - median) * weights.sum()))
        share = max(0.0, 1.0 - met.sum() / pull) if pull > 0 else 0.0
        step = share * (target - median)
        median = median + step
        if float(np.linalg.norm(step)) <= tolerance * scale:
            break
    return np.asarray(median)
