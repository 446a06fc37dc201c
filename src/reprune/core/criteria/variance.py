"""Variance: units whose response hardly changes can be replaced by their mean.

The oldest of the response criteria (Sietsma and Dow, "Creating artificial neural networks that generalize", Neural
Networks 1991: units of nearly constant output go into the bias), so it goes well with the compensation `mean`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reprune.core.criteria.base import Criterion, Group, Ranking, rank_by


@dataclass(frozen=True)
class Variance(Criterion):
    """score(u) = C_uu, the variance of the response of unit u.

    Example:
        >>> from reprune.core.methods import Method
        >>> Method(allocation="uniform", criterion=Variance(), compensation="mean").needs_statistics
        True
    """

    needs_statistics = True

    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Rank by variance. See `Criterion.rank`."""
        return rank_by([np.clip(layer.covariance.diagonal(), 0.0, None) for layer in group])
