"""Cost allocation: the next unit goes wherever it costs least, over all layers at once.

A greedy descent on the criterion's own cost. It needs a criterion whose scores can be compared between layers, as
`reconstruction`'s squared errors can.
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
class Cost(Allocation):
    """A unit goes when the threshold reaches the cost of the dearest unit removed up to it.

    The cost is that for each unit, parameter or MAC saved, whichever the budget counts.
    """

    per_cost = True

    def thresholds(self, layers: Sequence[LayerEvidence], ranking: Ranking) -> NDArray[np.float64]:
        """Costs in order of removal, made non-decreasing. See `Allocation.thresholds`."""
        return np.maximum.accumulate(ranking.scores[ranking.order])
