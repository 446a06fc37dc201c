"""Geometric median: units nearest the median of all units are the most replaceable.

He et al., "Filter Pruning via Geometric Median for Deep Neural Networks Acceleration" (FPGM), CVPR 2019, eq. 7, applied
to LSTM units by Gkalelis and Mezaris (ISS-GM), IEEE ISM 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from reprune.core.criteria.base import Criterion, Ranking, rank_by
from reprune.core.evidence import LayerEvidence, to_numpy

Array = Any


@dataclass(frozen=True)
class GeometricMedian(Criterion):
    """score(u) = Σ_v ‖w_u − w_v‖ over the concatenated incoming gate weights w_u of unit u."""

    def rank(self, group: Sequence[LayerEvidence], rng: np.random.Generator) -> Ranking:
        """Rank by the sum of distances to all other units. See `Criterion.rank`."""
        return rank_by([to_numpy(distance_sums(layer.incoming)) for layer in group])


def distance_sums(points: Array) -> Array:
    """Sum of Euclidean distances from each point to all others.

    ‖a − b‖² = ‖a‖² + ‖b‖² − 2a·b needs one matrix product instead of a pass over all pairs, but it cancels where two
    points nearly coincide: those few pairs are computed again from their difference.

    Args:
        points: Points (n × d).

    Returns:
        Sums (n), in the points' precision.
    """
    xp = array_namespace(points)
    # A common shift changes no distance and shrinks the norms that cancel.
    points = points - xp.mean(points, axis=0)
    squares = xp.sum(points**2, axis=1)
    scale = squares[:, None] + squares[None, :]
    distances = scale - 2.0 * (points @ points.T)
    # Rounding of the product is about eps·‖a‖‖b‖·√d; below this share of the scale fewer than ~3 digits are left.
    unsure = distances < scale * (1e3 * xp.finfo(points.dtype).eps)
    distances = xp.sqrt(xp.clip(distances, 0.0, None))
    first, second = xp.nonzero(unsure)
    # In blocks, so that a layer of identical units does not hold n² differences at once.
    for start in range(0, first.shape[0], 1024):
        i, j = first[start : start + 1024], second[start : start + 1024]
        distances[i, j] = xp.sqrt(xp.sum((points[i] - points[j]) ** 2, axis=1))
    return xp.sum(distances, axis=1)
