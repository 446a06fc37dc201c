"""Allocations: how many units go where. One file each; adding one takes its file and its line in `ALLOCATIONS`."""

from __future__ import annotations

from reprune.core.allocation.base import Allocation
from reprune.core.allocation.cost import Cost
from reprune.core.allocation.energy import Energy
from reprune.core.allocation.kl import KL
from reprune.core.allocation.measured import Measured
from reprune.core.allocation.uniform import Uniform

ALLOCATIONS: dict[str, type[Allocation]] = {
    "cost": Cost,
    "energy": Energy,
    "kl": KL,
    "measured": Measured,
    "uniform": Uniform,
}

__all__ = ["ALLOCATIONS", "KL", "Allocation", "Cost", "Energy", "Measured", "Uniform"]
