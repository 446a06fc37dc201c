"""What every allocation answers: at which threshold a layer loses its next unit.

Every allocation here is monotone: a stricter budget never gives a unit back. So it can be written as one non-decreasing
sequence of thresholds per layer, and a budget is met by one search over all thresholds together (`core.budget`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reprune.core.criteria.base import Ranking
from reprune.core.evidence.evidence import LayerEvidence


class Allocation(ABC):
    """Splits a budget over layers."""

    needs_statistics: bool = False
    per_cost: bool = False
    """Whether thresholds are to be divided by what one unit of the layers saves in the budget's measure."""

    @property
    def level(self) -> float | None:
        """Threshold at which the allocation stops by itself when no ratio is given; None when it needs one."""
        return None

    @abstractmethod
    def thresholds(self, layers: Sequence[LayerEvidence], ranking: Ranking) -> NDArray[np.float64]:
        """Thresholds at which a set of coupled layers loses its first, second, … unit.

        Args:
            layers: Evidence about layers that lose units together, all with the same number of units.
            ranking: The order in which the criterion removes them.

        Returns:
            Non-decreasing thresholds (units): the lower, the earlier the unit goes. Comparable between layers.
        """
