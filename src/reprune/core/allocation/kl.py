"""KL allocation: every layer keeps the share of units by which its spectrum is as spread as a uniform one.

PFA-KL of Suau et al., "Filter Distillation for Network Compression", WACV 2020, section 3. With p the eigenvalues of
the response covariance scaled to sum 1 and u the uniform distribution over H components, a layer keeps
k = ⌈H (1 − KL(p ‖ u) / log H)⌉ units. The divergence is largest, log H, where one component holds everything. The rule
has no parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reprune.core.allocation.base import Allocation
from reprune.core.allocation.energy import share
from reprune.core.criteria.base import Ranking
from reprune.core.evidence.evidence import LayerEvidence


@dataclass(frozen=True)
class KL(Allocation):
    """Without a ratio, every layer keeps the paper's k. A ratio scales what each layer loses by one common factor.

    At factor s a layer loses s · (H − k) units; s = 1 is the paper's rule, and the budget finds s. Layers that lose
    units together share the mean of the shares that they would keep.

    Example:
        >>> KL().level
        1.0
    """

    needs_statistics = True

    @property
    def level(self) -> float | None:
        """The factor at which the rule itself stops: 1."""
        return 1.0

    def thresholds(self, layers: Sequence[LayerEvidence], ranking: Ranking) -> NDArray[np.float64]:
        """Factors at which each further unit goes. See `Allocation.thresholds`."""
        units = layers[0].units
        lost = units * (1.0 - float(np.mean([kept_share(layer.spectrum) for layer in layers])))
        # A spectrum that is uniform up to rounding asks for nothing, whatever the factor; a budget may still insist.
        return np.arange(1, units + 1) / max(lost, 1e-9)


def kept_share(spectrum: NDArray[np.float64]) -> float:
    """1 − KL(p ‖ u) / log H: the entropy of the spectrum as a share of the largest possible.

    Example:
        >>> kept_share(np.array([2.0, 2.0, 0.0, 0.0]))
        0.5
    """
    shares = share(spectrum)
    held = shares[shares > 0]
    if len(spectrum) == 1:
        return 1.0
    return float(abs(np.sum(held * np.log(held))) / np.log(len(spectrum)))
