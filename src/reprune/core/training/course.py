"""The course of a training in which units leave: what a schedule asks for at each step, of which model.

What the `Pruner` of every framework counts; it holds no framework object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from reprune.core.budget.budget import Budget
from reprune.core.budget.cost import CostModel
from reprune.core.layers import Structure
from reprune.core.plan import Plan
from reprune.core.schedule import Schedule
from reprune.core.training.shrink import within


class Course:
    """Where a training stands.

    Args:
        structure: Of the model that came in.
        budget: What is to be gone at the end.

    Attributes:
        structure: Of the model that came in.
        units: Units of that model, of which it now consists.
        before: Those of which it consisted before it last became smaller.
    """

    def __init__(self, structure: Structure, budget: Budget) -> None:
        self.structure = structure
        self._budget = budget
        self.units = self.before = whole(structure)

    def budget(self, share: float, now: Structure) -> Budget:
        """What to remove of the model as it is, to leave what `share` of the ratio leaves of the model that came in."""
        of, ratio = self._budget.of, self._budget.ratio or 0.0
        left = (1 - share * ratio) * CostModel(self.structure)(of, self.structure.counts())
        rest = 1 - left / CostModel(now)(of, now.counts())
        return replace(self._budget, ratio=rest if rest > 1e-9 else 0.0)

    def original(self, plan: Plan) -> Plan:
        """A decision about the model as it is, as one about the model that came in."""
        if plan.structure == self.structure:
            return plan
        return Plan(self.structure, within(self.units, plan.kept), plan.method, self._budget.ratio or 0, plan.of)

    def shrink(self, kept: Mapping[str, Sequence[int]]) -> None:
        """Units have left the model."""
        self.before, self.units = self.units, within(self.units, kept)


def whole(structure: Structure) -> dict[str, list[int]]:
    """All units of every layer."""
    return {name: list(range(units)) for name, units in structure.counts().items()}


def share_and_factor(schedule: Schedule, steps: int, total: int | None) -> tuple[float, float]:
    """Which part of the ratio is to be selected after so many steps, and what the weights of those units become."""
    over = min(steps / total, 1.0) if total else 0.0
    return schedule.share(over), schedule.factor(over)
