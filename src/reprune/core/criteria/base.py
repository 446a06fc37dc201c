"""What every criterion answers: in which order the units of a group go, and at what price."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reprune.core.evidence.evidence import LayerEvidence

Group = Sequence[LayerEvidence]
"""Evidence about index-coupled layers, all with the same number of units."""


class Ranking(NamedTuple):
    """Order of removal of the units of one group.

    Attributes:
        order: Unit indices, first to go first (units).
        scores: Score of every unit by its index (units); units with small scores go first.
    """

    order: NDArray[np.int64]
    scores: NDArray[np.float64]


class Criterion(ABC):
    """Scores the units of a group of index-coupled layers, which go together.

    A criterion is a small immutable object; its fields are its options.
    """

    needs_statistics: bool = False
    needs_readings: bool = False
    needs_labels: bool = False
    needs_loss: bool = False

    @abstractmethod
    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Rank the units of a group.

        Args:
            group: The layers, which lose the same units.
            rng: Source of randomness, seeded by the caller.
        """

    def rank_all(
        self, sets: Sequence[Sequence[Group]], savings: Sequence[float], rng: np.random.Generator
    ) -> list[list[Ranking]]:
        """Rank the units of all groups: each for itself, unless a criterion knows how they depend on each other.

        Args:
            sets: Groups that lose units at the same time, because their layers must keep equal numbers of them.
            savings: What one unit of each group of a set saves in the budget's measure, by set.
            rng: Source of randomness, seeded by the caller.

        Returns:
            One ranking for each group of each set.
        """
        return [[self.rank(group, rng) for group in together] for together in sets]


def rank_by(scores: Sequence[NDArray[np.float64]]) -> Ranking:
    """Ranking by the sum of each layer's scores; ties go by index, so plans are the same everywhere.

    Layers of one group may live on different scales: each is divided by its own mean before the sum.

    Args:
        scores: Scores that are not negative (units), one array per layer of the group.

    Example:
        >>> rank_by([np.array([2.0, 1.0, 1.0])]).order.tolist()
        [1, 2, 0]
    """
    total = scores[0] if len(scores) == 1 else np.sum([score / (score.mean() or 1.0) for score in scores], axis=0)
    # Units with equal weights differ in the last digits by the order of summation alone: those are no difference.
    largest = float(np.max(total)) or 1.0
    return Ranking(np.argsort(np.round(total / largest, 12), kind="stable"), total)
