"""Geometric median of responses: units whose response is near those of all others are the most replaceable.

The geometric median of FPGM (He et al., CVPR 2019) with responses in place of weights. The mean squared distance of two
responses needs no pass over the data: E(r_u − r_v)² = C_uu + C_vv − 2 C_uv + (m_u − m_v)².
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reprune.core.criteria.base import Criterion, Group, Ranking, rank_by
from reprune.core.evidence.evidence import LayerEvidence


@dataclass(frozen=True)
class ResponseMedian(Criterion):
    """score(u) = Σ_v (E(r_u − r_v)²)^½.

    Attributes:
        means: Whether a difference of means counts. Without it, responses that differ by a constant are the same,
            which they are for a compensation that can change biases.

    Example:
        >>> ResponseMedian(means=False).needs_statistics
        True
    """

    means: bool = True
    needs_statistics = True

    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Rank by the sum of distances to all other responses. See `Criterion.rank`."""
        return rank_by([self._sums(layer) for layer in group])

    def _sums(self, layer: LayerEvidence) -> NDArray[np.float64]:
        covariance = layer.covariance
        own = covariance.diagonal()
        squares = own[:, None] + own[None, :] - 2.0 * covariance
        if self.means:
            squares = squares + (layer.mean[:, None] - layer.mean[None, :]) ** 2
        return np.asarray(np.sqrt(np.clip(squares, 0.0, None)).sum(axis=1))
