"""Fractional step: ever more units are selected, and they fade rather than vanish.

The schedule of Gkalelis and Mezaris, "Fractional Step Discriminant Pruning" (FSDP), IEEE ICMEW 2020: the number of
selected units and the factor on their weights both approach their targets asymptotically. The curve is that of He et
al., "Asymptotic Soft Filter Pruning", IEEE Transactions on Cybernetics 2020, eq. 4: an exponential through 0 at the
start, 3/4 of the target after 1/8 of the training, and the target at its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

from reprune.core.schedule.base import Schedule

RATE = 8 * log(4)
"""Of the exponential, which has fallen to 1/4 after 1/8 of the training."""


@dataclass(frozen=True)
class Fractional(Schedule):
    """share(p) = (1 − 4^(−8p)) / (1 − 4^(−8)) of the ratio at progress p; factor(p) = 1 − share(p).

    Example:
        >>> round(Fractional(200).share(1 / 8), 4)
        0.75
    """

    kind = "fractional"
    needs_total = True

    def share(self, progress: float) -> float:
        """Fraction of the ratio that is selected. See `Schedule.share`."""
        return (1 - exp(-RATE * progress)) / (1 - exp(-RATE))

    def factor(self, progress: float) -> float:
        """Factor on the weights of selected units. See `Schedule.factor`."""
        return 1 - self.share(progress)
