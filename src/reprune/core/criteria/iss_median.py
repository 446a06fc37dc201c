"""Geometric median of whole intrinsic sparse structures: gate rows, recurrent column and consumer columns together.

A variant of ISS-GM (Gkalelis and Mezaris, IEEE ISM 2020): there the incoming gate weights alone are a unit's vector.
Two units are the same for the model only if what they feed is the same, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from reprune.core.criteria.base import Criterion, Group, Ranking, rank_by
from reprune.core.criteria.geometric_median import distance_sums


@dataclass(frozen=True)
class IssMedian(Criterion):
    """score(u) = Σ_v ‖ISS_u − ISS_v‖ over incoming and outgoing weights of the units.

    Example:
        >>> IssMedian().needs_statistics
        False
    """

    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Rank by the sum of distances to all other units. See `Criterion.rank`."""
        scores = []
        for layer in group:
            xp = array_namespace(layer.incoming)
            scores.append(distance_sums(xp.concat([layer.incoming, layer.outgoing], axis=1)))
        return rank_by(scores)
