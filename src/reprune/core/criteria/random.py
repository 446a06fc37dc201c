"""Random removal: the baseline that every criterion has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reprune.core.criteria.base import Criterion, Group, Ranking, rank_by


@dataclass(frozen=True)
class Random(Criterion):
    """Uniformly random scores from the caller's generator."""

    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Rank at random. See `Criterion.rank`."""
        return rank_by([rng.random(group[0].units)])
