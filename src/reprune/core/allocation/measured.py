"""Measured allocation: of splits between equal shares, the least costs and the eigenanalysis, the one that does best.

A greedy descent on one-step costs does not see errors that go round: a layer that feeds itself, or feeds another,
compounds them, and a layer made tiny is far outside of where a quadratic estimate holds. No rule is right everywhere,
so that splits are tried: the small model's answers are measured (`core.split`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reprune.core.allocation.base import Allocation
from reprune.core.allocation.cost import Cost
from reprune.core.allocation.energy import Energy
from reprune.core.allocation.uniform import Uniform


@dataclass(frozen=True)
class Measured(Cost):
    """A unit goes when the split that did best lets it go; where nothing can be measured, when `Cost` does.

    Attributes:
        origin: Where all lines of splits that are tried begin.
        ends: Where they end.
    """

    origin: Allocation = field(default_factory=Uniform)
    ends: tuple[Allocation, ...] = field(default_factory=lambda: (Cost(), Energy()))
    needs_statistics = True
