"""Gradual: units leave in stages, many early and few late, and the model shrinks with them.

Zhu and Gupta, "To prune, or not to prune", 2017 (arXiv 1710.01878), eq. 1: sparsity rises as a cubic. They mask
weights; here units are gone after each stage, so that the rest of the training is faster.
"""

from __future__ import annotations

from dataclasses import dataclass

from reprune.core.schedule.base import Schedule

END = 0.5
"""Fraction of the training after which the size is final; the rest lets the model recover."""


@dataclass(frozen=True)
class Gradual(Schedule):
    """share(p) = 1 − (1 − p / ½)³ of the ratio at progress p, until half of the training is over.

    Example:
        >>> Gradual(200).share(0.25)
        0.875
    """

    kind = "gradual"
    shrinks = True
    needs_total = True

    def share(self, progress: float) -> float:
        """Fraction of the ratio that is gone. See `Schedule.share`."""
        return 1.0 - (1.0 - min(progress / END, 1.0)) ** 3
