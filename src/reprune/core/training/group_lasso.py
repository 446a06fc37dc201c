"""How strongly the ISS group lasso pulls: λ is found while a model trains.

W. Wen et al., "Learning Intrinsic Sparse Structures within Long Short-Term Memory", ICLR 2018, eq. 4: the loss gains
λ Σ_u ‖ISS_u‖₂. A weight between two units belongs to the structures of both, so the groups overlap and the proximal
operator has no closed form; the penalty is therefore differentiated (its subgradient at zero is 0) and goes through the
training's own optimiser, as in the paper. Units that are as good as zero are removed at the end by the plan.

The paper tries values of λ until the size is right. Here λ is found while the model trains: it grows until as many
units are as good as zero as the ratio asks for. Units go on shrinking for a while after λ is large enough, so close to
the target the penalty on those that are left fades out; those that are gone it holds where they are.
"""

from __future__ import annotations

from math import exp

import numpy as np
from numpy.typing import NDArray

from reprune.core.budget.cost import CostModel, Measure
from reprune.core.layers import Structure
from reprune.core.units import UnitIndex

START = 1e-4
"""First λ."""
GROWTH = 0.015
"""Growth of log λ per step, until the target is near: tenfold in 150 steps."""
FADE = 0.05
"""Fraction of the budget's measure over which the penalty fades out: before the target on units that are left, beyond
it on those that are gone, too, so that some come back."""
DEAD = 0.1
"""A unit counts as gone when its structure is shorter than this fraction of the mean length at the start. An optimiser
with steps of one size, such as Adam, keeps weights that want to be zero at about the size of its step."""


class Pull:
    """λ, and what is left of it on units that stay and on those that are gone.

    Attributes:
        strength: λ.
        missing: Fraction of the budget's measure that is still to go.
    """

    def __init__(self) -> None:
        self.strength = START
        self.missing = 1.0

    @property
    def on_units(self) -> tuple[float, float]:
        """λ times what is left of it for units that are left, and for those that are gone."""
        left, gone = _clipped(self.missing / FADE), _clipped(self.missing / FADE + 1)
        return self.strength * left, self.strength * gone

    def step(self, missing: float) -> None:
        """Let λ grow after an optimiser step."""
        self.missing = missing
        self.strength *= exp(GROWTH * _clipped(missing / FADE))


def share_gone(structure: Structure, index: UnitIndex, alive: NDArray[np.bool_], of: Measure, total: float) -> float:
    """Fraction of a measure that units hold which are as good as zero.

    Args:
        structure: What is left of the model.
        index: Numbers of its units.
        alive: Which units are not as good as zero (units).
        of: The measure.
        total: The measure of the model that came in.
    """
    counts = structure.counts()
    counts.update({name: max(int(units.sum()), 1) for name, units in index.by_layer(alive).items()})
    return 1.0 - CostModel(structure)(of, counts) / total


def _clipped(value: float) -> float:
    return min(max(value, 0.0), 1.0)
