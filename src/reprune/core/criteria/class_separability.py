"""Class separability: units whose response says least about the class go first.

The criterion of Gkalelis and Mezaris, "Fractional Step Discriminant Pruning" (FSDP), IEEE ICMEW 2020, with the scatter
ratio of linear discriminant analysis, unit by unit: the variance of the class means over the mean variance within the
classes. Every time step of a sequence counts for the classes of the sequence; with several labels, for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reprune.core.criteria.base import Criterion, Group, Ranking, rank_by
from reprune.core.criteria.geometric_median import distance_sums


@dataclass(frozen=True)
class ClassSeparability(Criterion):
    """score(u) = S_B(u) / S_W(u), the scatter between classes over the scatter within them.

    Example:
        >>> ClassSeparability().needs_labels
        True
    """

    needs_labels = True

    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Rank by the scatter ratio. See `Criterion.rank`."""
        return rank_by([layer.separability for layer in group])


@dataclass(frozen=True)
class Discriminant(Criterion):
    """FSDP's mixture: a share of the units goes by class separability, the others by the geometric median.

    FSDP gives each criterion a rate of its own: of 50% removed, 10% by class separability and 40% by the median.

    Attributes:
        share: Share of the removed units that class separability selects, from 0 to 1.

    Example:
        >>> Discriminant(share=0.5)
        Discriminant(share=0.5)
    """

    share: float = 0.2
    needs_labels = True

    def rank(self, group: Group, rng: np.random.Generator) -> Ranking:
        """Take from both rankings in turn, each unit once. See `Criterion.rank`."""
        separability = rank_by([layer.separability for layer in group]).order
        median = rank_by([distance_sums(layer.incoming) for layer in group]).order
        order = interleave(separability, median, self.share)
        scores = np.zeros(len(order))
        scores[order] = np.arange(len(order))
        return Ranking(order, scores)


def interleave(first: NDArray[np.int64], second: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """One order out of two: of any number of leading entries, `share` (rounded down) were chosen by `first`.

    Example:
        >>> interleave(np.array([0, 1, 2, 3]), np.array([3, 2, 1, 0]), 0.5).tolist()
        [3, 0, 2, 1]
    """
    queues = [list(second[::-1]), list(first[::-1])]
    taken: list[int] = []
    for step in range(len(first)):
        # A share such as 0.3 times a step such as 10 is meant to be whole.
        mine = int(share * (step + 1) + 1e-9) > int(share * step + 1e-9)
        queue = queues[mine]
        while (unit := int(queue.pop())) in taken:
            pass
        taken.append(unit)
    return np.asarray(taken, dtype=np.int64)
