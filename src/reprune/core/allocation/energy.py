"""Energy allocation: every layer keeps as many units as its responses have principal components above one threshold.

ISS-GM (Gkalelis and Mezaris, IEEE ISM 2020); PFA-En of Suau et al., "Filter Distillation for Network Compression", WACV
2020, eq. 3: k(τ) is the smallest k with Σ_{i≤k} λ_i / Σ λ ≥ τ, the λ being the eigenvalues of the response covariance.
A layer whose spectrum is concentrated is redundant and loses more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reprune.core.allocation.base import Allocation
from reprune.core.criteria.base import Ranking
from reprune.core.evidence.evidence import LayerEvidence


@dataclass(frozen=True)
class Energy(Allocation):
    """A layer goes from k units to k − 1 once τ no longer exceeds the energy of its first k − 1 components.

    Thresholds are given as 1 − τ. Layers that lose units together share the mean of their spectra, each scaled to
    sum 1. A layer that never responds (zero covariance) has no energy to keep and goes first, down to its minimum.

    Attributes:
        threshold: τ where no ratio is given; a ratio finds its own.
    """

    threshold: float | None = None
    needs_statistics = True

    @property
    def level(self) -> float | None:
        """1 − τ, or None without a τ of its own."""
        # A threshold that is met exactly counts as met in spite of rounding in the sum.
        return None if self.threshold is None else 1.0 - self.threshold + 1e-12

    def thresholds(self, layers: Sequence[LayerEvidence], ranking: Ranking) -> NDArray[np.float64]:
        """Energy lost with each further unit. See `Allocation.thresholds`."""
        shares = np.mean([share(layer.spectrum) for layer in layers], axis=0)
        # Adding from the small end keeps the digits of small tails, and the result never decreases.
        return np.cumsum(shares[::-1])


def share(spectrum: NDArray[np.float64]) -> NDArray[np.float64]:
    """A spectrum scaled to sum 1; all zeros stay zeros."""
    total = spectrum.sum()
    return spectrum / total if total > 0 else np.zeros_like(spectrum)


def components(spectrum: NDArray[np.float64], threshold: float) -> int:
    """k(τ): the smallest number of leading components whose share of the energy reaches `threshold`.

    Args:
        spectrum: Eigenvalues (units), largest first.
        threshold: Share of the energy to reach, from 0 to 1.

    Returns:
        From 1 to the number of units; 0 for a spectrum without energy.

    Example:
        >>> components(np.array([4.0, 3.0, 2.0, 1.0]), 0.7)
        2
    """
    energy = np.cumsum(share(spectrum))
    # A threshold that is met exactly counts as met in spite of rounding in the sum.
    return min(int(np.searchsorted(energy, threshold - 1e-12)) + 1, len(spectrum)) if energy[-1] > 0 else 0
