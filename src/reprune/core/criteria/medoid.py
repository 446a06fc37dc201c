"""Medoid: units nearest the most central unit.

He et al. (FPGM, CVPR 2019, eq. 5 to 7) look for the filters nearest the geometric median of all filters and replace the
median, a point of the whole space, by the filter with the least sum of distances. Here that filter is found, and units
are ranked by their distance to it, as the text says, rather than by their own sums of distances, as eq. 7 does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from reprune.core.criteria.base import Criterion, Group, Ranking, rank_by
from reprune.core.criteria.geometric_median import distance_sums
from reprune.core.evidence.moments import to_numpy


@dataclass(frozen=True)
class Medoid(Criterion):
    """score(u) = ‖w_u − w_m‖ with the medoid m = argmin_v Σ_u ‖w_u − w_v‖ over the incoming gate weights.

    Example:
        >>> Medoid().needs_statistics
        False
    """

    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Rank by the distance to the medoid. See `Criterion.rank`."""
        return rank_by([medoid_distances(layer.incoming) for layer in group])


def medoid_distances(points: Any) -> NDArray[np.float64]:
    """Euclidean distance of each point (n × d) to the one with the least sum of distances.

    Example:
        >>> medoid_distances(np.array([[0.0], [1.0], [5.0]])).tolist()
        [1.0, 0.0, 4.0]
    """
    sums = distance_sums(points)
    centre = points[int(np.argmin(np.round(sums / (sums.max() or 1.0), 12)))]
    return to_numpy(array_namespace(points).linalg.vector_norm(points - centre, axis=1))
