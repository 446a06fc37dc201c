"""Given: scores that somebody else computed, such as the gates that training opened or closed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reprune.core.criteria.base import Criterion, Group, Ranking, rank_by


@dataclass(frozen=True)
class Given(Criterion):
    """score(u) = the number that was given for unit u.

    Attributes:
        scores: Scores that are not negative by layer (units); coupled layers have the same ones.

    Example:
        >>> Given({"lstm:l0": np.array([0.1, 0.9])}).needs_statistics
        False
    """

    scores: Mapping[str, NDArray[np.float64]]

    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Rank by the scores. See `Criterion.rank`."""
        return rank_by([self.scores[group[0].name]])
