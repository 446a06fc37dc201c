"""Random removal: the baseline that every criterion has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reprune.core.criteria.base import Criterion, Ranking, rank_by
from reprune.core.evidence import LayerEvidence


@dataclass(frozen=True)
class Random(Criterion):
    """Uniformly random scores from the caller's generator."""

    def rank(self, group: Sequence[LayerEvidence], rng: np.random.Generator) -> Ranking:
        """Rank at random. See `Criterion.rank`."""
        return rank_by([rng.random(group[0].units)])
