"""Uniform allocation: every layer loses the same share of its units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reprune.core.allocation.base import Allocation
from reprune.core.criteria.base import Ranking
from reprune.core.evidence.evidence import LayerEvidence


@dataclass(frozen=True)
class Uniform(Allocation):
    """The j-th unit of a layer with H units goes when the share removed reaches (j − ½) / H."""

    def thresholds(self, layers: Sequence[LayerEvidence], ranking: Ranking) -> NDArray[np.float64]:
        """Shares of the layer. See `Allocation.thresholds`."""
        units = layers[0].units
        return (np.arange(units) + 0.5) / units
