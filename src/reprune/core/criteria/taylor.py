"""Taylor: units whose weights matter least to the loss, to first order.

Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019: removing a weight w changes the loss by
about w · ∂L/∂w. The usual baseline of pruning libraries sums the sizes of these over everything a unit touches. The
gradient is that of the mean loss over the calibration batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reprune.core.criteria.base import Criterion, Group, Ranking, rank_by


@dataclass(frozen=True)
class Taylor(Criterion):
    """score(u) = Σ |w · ∂L/∂w| over gate rows, recurrent column and consumer columns of unit u.

    Example:
        >>> Taylor().needs_loss
        True
    """

    needs_loss = True

    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Rank by the summed sensitivities. See `Criterion.rank`."""
        return rank_by([layer.sensitivity for layer in group])
