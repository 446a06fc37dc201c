"""Geometric median: units nearest the median of all units are the most replaceable.

He et al., "Filter Pruning via Geometric Median for Deep Neural Networks Acceleration" (FPGM), CVPR 2019, eq. 7, applied
to LSTM units by Gkalelis and Mezaris (ISS-GM), IEEE ISM 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from reprune.core.criteria.base import Criterion, Group, Ranking, rank_by
from reprune.core.evidence.moments import to_numpy

Array = Any

NEAR = 1e-2
"""Share of ‖a‖² + ‖b‖² below which ‖a − b‖² is left with fewer than about five digits in single precision."""

COINCIDENT = 1e-14
"""The same share below which nothing but rounding is left in double precision."""


@dataclass(frozen=True)
class GeometricMedian(Criterion):
    """score(u) = Σ_v ‖w_u − w_v‖ over the concatenated incoming gate weights w_u of unit u."""

    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Rank by the sum of distances to all other units. See `Criterion.rank`."""
        return rank_by([distance_sums(layer.incoming) for layer in group])


def distance_sums(points: Array) -> NDArray[np.float64]:
    """Sum of Euclidean distances from each point to all others.

    ‖a − b‖² = ‖a‖² + ‖b‖² − 2a·b needs one matrix product instead of a pass over all pairs, but it cancels where two
    points nearly coincide. Single precision is tried first, and double precision where any pair comes too near for it.
    There a distance is off by at most about 1e-7 (‖a‖ + ‖b‖); as the points are centred there, no sum is off by more
    than a like share of itself, wherever the points lie.

    Args:
        points: Points (n × d) in single or double precision, NumPy or PyTorch on any device.

    Returns:
        Sums (n).

    Example:
        >>> distance_sums(np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])).round(6).tolist()
        [10.0, 5.0, 5.0]
    """
    points = _placed(points)
    xp = array_namespace(points)
    single = points.dtype == xp.float32
    if single:
        squares, scale = _squared_distances(points)
        single = not _too_near(squares, scale)
    if not single:
        points = xp.astype(points, xp.float64)
        # A common shift changes no distance and shrinks the norms that cancel.
        squares, scale = _squared_distances(points - xp.mean(points, axis=0))
    # Asked this way round, NaN stays NaN.
    squares[squares <= COINCIDENT * scale] = 0.0
    return to_numpy(xp.sum(xp.sqrt(squares), axis=1))


def _placed(points: Array) -> Array:
    """The points where and how their products are best formed: NumPy on a CPU, doubles on a GPU."""
    if hasattr(points, "detach"):
        points = points.detach()
        if device(points).type not in ("cpu", "mps"):
            # Doubles are fast there, while a product in single precision may run on TF32's three digits.
            return points.double()
        points = points.cpu().numpy()
    # NumPy forms half of a product with the own transpose, and always in the operands' precision.
    return points


def _squared_distances(points: Array) -> tuple[Array, Array]:
    """‖a − b‖² and ‖a‖² + ‖b‖² for all pairs (n × n each)."""
    squares = points @ points.T
    norms = array_namespace(points).linalg.diagonal(squares)
    scale = norms[:, None] + norms[None, :]
    squares *= -2.0
    squares += scale
    return squares, scale


def _too_near(squares: NDArray[np.float32], scale: NDArray[np.float32]) -> bool:
    """Whether any two points are too near each other for single precision."""
    near = squares < NEAR * scale
    np.fill_diagonal(near, False)
    return bool(near.any())
