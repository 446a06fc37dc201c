"""Meeting a budget: one search over the thresholds of all layers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from reprune.core.budget.cost import MEASURES, NO_TABLE, CostModel, Measure
from reprune.core.budget.latency import LatencyTable
from reprune.core.errors import BudgetError

RATIO = 0.5
"""What is removed when nobody says how much."""

PRECISION = 0.01
"""To within what a ratio is found."""
T = TypeVar("T")

Step = tuple[float, int, int]
"""A permitted shrinking: threshold, block, units kept after it."""


@dataclass(frozen=True)
class Budget:
    """How much to remove, and the bounds that every layer keeps.

    Attributes:
        ratio: Fraction to remove, at least 0 and under 1; None where the allocation decides by itself.
        of: What is counted: `units` of the prunable layers, or `parameters`, `macs` or `latency` of the whole model.
        min_units: Units that every layer keeps at least (a smaller layer keeps all of its own).
        round_to: Units kept are a multiple of this (a layer that loses none keeps its size).
        target_ms: Latency to get down to, in milliseconds, in place of a ratio.
        latency: Measured times, for budgets of latency.

    Raises:
        BudgetError: When a value is out of range.

    Example:
        >>> Budget(ratio=0.5, of="macs", round_to=8).min_units
        1
    """

    ratio: float | None
    of: Measure = "units"
    min_units: int = 1
    round_to: int = 1
    target_ms: float | None = None
    latency: LatencyTable | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None and not (isinstance(self.ratio, (int, float, np.floating)) and 0 <= self.ratio < 1):
            raise BudgetError(
                f"ratio={self.ratio!r} is not a fraction to remove: give a number from 0 (nothing) to under 1."
            )
        if self.of not in MEASURES:
            raise BudgetError(f"of={self.of!r} is not a measure: give one of {', '.join(MEASURES)}.")
        for name in ("min_units", "round_to"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise BudgetError(f"{name}={value!r} must be a whole number, at least 1.")
        if self.of == "latency" and self.latency is None:
            raise BudgetError(NO_TABLE)

    def removes(self, total: float) -> float | None:
        """How much of a model that costs `total` is to go; None where the allocation decides by itself."""
        if self.target_ms is not None:
            return max(total - self.target_ms, 0.0)
        return None if self.ratio is None else self.ratio * total


@dataclass(frozen=True)
class Request:
    """A budget in the caller's words: checked before anything runs, and made a `Budget` once times are measured.

    Attributes:
        ratio: Fraction to remove, None where the method finds its own size; the default is not meant with `target_ms`.
        of: See `Budget`.
        min_units: See `Budget`.
        round_to: See `Budget`; `auto` for the multiple that the machine's kernels like.
        target_ms: Latency to get down to, in milliseconds.
        tolerance: Divergence from the dense model's answers that is to be stayed within, in place of a ratio.

    Raises:
        BudgetError: When a value is out of range, or two contradict each other.
    """

    ratio: float | None = RATIO
    of: Measure = "units"
    min_units: int = 1
    round_to: int | Literal["auto"] = 1
    target_ms: float | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        # With times still to be measured, everything else can be checked.
        Budget(self.ratio, "units" if self.of == "latency" else self.of, self.min_units, self._rounding(None))
        if self.tolerance is not None:
            if not isinstance(self.tolerance, (int, float)) or not self.tolerance >= 0:
                raise BudgetError(f"tolerance={self.tolerance!r} must be a divergence: a number, at least 0.")
            if self.ratio not in (None, RATIO) or self.target_ms is not None:
                raise BudgetError(f"tolerance={self.tolerance} finds the ratio: leave ratio= and target_ms= out.")
        if self.target_ms is None:
            return
        number = isinstance(self.target_ms, (int, float)) and not isinstance(self.target_ms, bool)
        if not number or not isfinite(self.target_ms) or self.target_ms <= 0:
            raise BudgetError(f"target_ms={self.target_ms!r} must be a number of milliseconds, greater than 0.")
        if self.of != "latency":
            raise BudgetError(f"target_ms={self.target_ms} is a latency: give of='latency' with it, not {self.of!r}.")
        if self.ratio not in (None, RATIO):
            raise BudgetError(f"ratio={self.ratio} and target_ms={self.target_ms} both say how much: give one of them.")

    @property
    def needs_table(self) -> bool:
        """Whether times have to be measured."""
        return self.of == "latency" or self.round_to == "auto"

    def budget(self, table: LatencyTable | None) -> Budget:
        """The budget; `table` is needed where `needs_table` says so.

        Raises:
            BudgetError: When what is given is no table.
        """
        if not isinstance(table, (LatencyTable, type(None))):
            raise BudgetError(f"latency={table!r} is no table: give measure_latency(…) or LatencyTable.read(path).")
        ratio = None if self.target_ms is not None else self.ratio
        return Budget(ratio, self.of, self.min_units, self._rounding(table), self.target_ms, table)

    def _rounding(self, table: LatencyTable | None) -> int:
        if self.round_to != "auto":
            return self.round_to
        return 1 if table is None else table.multiple


@dataclass(frozen=True)
class Block:
    """Layers that lose units together.

    Attributes:
        layers: Their names.
        thresholds: Thresholds at which each of them loses its first, second, … unit (units), never decreasing.
        least: Units that each of them must keep.
    """

    layers: tuple[str, ...]
    thresholds: NDArray[np.float64]
    least: int = 1


def allocate(
    budget: Budget,
    blocks: Sequence[Block],
    cost: CostModel,
    before: Mapping[str, int],
    fixed: Mapping[str, int] | None = None,
    level: float | None = None,
) -> dict[str, int]:
    """Units that every layer keeps, so that the budget is met to within one step of one block.

    Lowering the common threshold takes units away in one fixed order; the removed cost grows with every step, so the
    threshold is found by bisection over the steps. Of the two steps around the budget the nearer one is taken, the one
    that removes less when both are equally near; a target in milliseconds is always reached. Where the step that would
    go too far takes units from several layers at once, smaller steps of other blocks fill up what is missing, in the
    same order.

    Args:
        budget: How much to remove.
        blocks: All layers that may lose units, each in one block.
        cost: Measures models by the units kept.
        before: Units of every layer of the model before pruning.
        fixed: Units that some layers keep whatever the budget says; they belong to no block.
        level: Threshold to cut at where the budget has no ratio.

    Returns:
        Units kept, for every layer in `before`.

    Raises:
        BudgetError: When even the smallest permitted sizes miss the budget, or fixed layers alone exceed it. The
            nearest possible ratio is named.
    """
    steps = _steps(budget, blocks)
    total = cost(budget.of, before)
    start = {**before, **(fixed or {})}
    if not blocks:
        return start

    def removed(taken: Sequence[Step]) -> float:
        return total - cost(budget.of, _after(start, blocks, taken))

    target = budget.removes(total)
    if target is None:
        if level is None:
            raise BudgetError("This method has no size of its own: give ratio=, the fraction to remove.")
        return _after(start, blocks, [step for step in steps if step[0] <= level])
    # A budget that is met exactly counts as met, and a tie as a tie, in spite of rounding in ratio · total.
    rounding = 1e-9 * total
    taken = bisect_left(range(len(steps) + 1), target - rounding, key=lambda count: removed(steps[:count]))
    if taken > len(steps):
        taken = len(steps)
        _check_reachable(budget, blocks, removed(steps), target - rounding, total)
    if taken == 0:
        _check_fixed(budget, removed([]), target + rounding, total)
        return start
    less, more = steps[: taken - 1], steps[:taken]
    if removed(more) > target + rounding and len(blocks[steps[taken - 1][1]].layers) > 1:
        less = _fill_up(less, steps[taken:], lambda trial: target + rounding - removed(trial))
    nearer = budget.target_ms is None and target - removed(less) <= removed(more) - target + rounding
    return _after(start, blocks, less if nearer else more)


def _fill_up(taken: list[Step], later: Sequence[Step], room: Callable[[Sequence[Step]], float]) -> list[Step]:
    """Steps taken, and those later ones that still fit. A block of which one does not fit gives no more."""
    blocked: set[int] = set()
    for step in later:
        if step[1] not in blocked:
            if room([*taken, step]) >= 0:
                taken = [*taken, step]
            else:
                blocked.add(step[1])
    return taken


def _steps(budget: Budget, blocks: Sequence[Block]) -> list[Step]:
    """All permitted shrinkings, in the order in which they happen."""
    steps: list[Step] = []
    for index, block in enumerate(blocks):
        units = len(block.thresholds)
        for kept in range(units - 1, max(budget.min_units, block.least) - 1, -1):
            if kept % budget.round_to == 0:
                steps.append((float(block.thresholds[units - kept - 1]), index, kept))
    # Equal thresholds: larger sizes first, so that every block's steps stay in order; of equal ones, earlier blocks'.
    return sorted(steps, key=lambda step: (step[0], -step[2]))


def _after(before: Mapping[str, int], blocks: Sequence[Block], steps: Sequence[Step]) -> dict[str, int]:
    counts = dict(before)
    last = {index: kept for _, index, kept in steps}
    for index, kept in last.items():
        counts.update(dict.fromkeys(blocks[index].layers, kept))
    return counts


def _check_reachable(budget: Budget, blocks: Sequence[Block], removed: float, target: float, total: float) -> None:
    # With the default bounds every layer keeps one unit: a unit budget is met to within what layers must keep.
    slack = (
        float(sum(len(block.layers) * block.least for block in blocks))
        if budget.of == "units" and budget.min_units == 1
        else 0.0
    )
    if target - removed > slack:
        bounds = f"with min_units={budget.min_units}, round_to={budget.round_to} and the layers left out"
        if budget.target_ms is not None:
            nearest = np.ceil((total - removed) * 1e3) / 1e3
            raise BudgetError(
                f"target_ms={budget.target_ms} cannot be met: {bounds}, the model takes {total - removed:.4g} of its "
                f"{total:.4g} ms at least. Ask for target_ms={nearest:.10g} or more, or loosen the bounds."
            )
        raise BudgetError(
            f"ratio={budget.ratio} of={budget.of!r} cannot be met: {bounds}, at most {removed / total:.4g} can be "
            f"removed. Ask for ratio={np.floor(removed / total * 1e4) / 1e4:.4g} or less, or loosen the bounds."
        )


def _check_fixed(budget: Budget, removed: float, target: float, total: float) -> None:
    # A target in milliseconds is an upper bound: less is fine.
    if budget.target_ms is None and removed > target:
        raise BudgetError(
            f"ratio={budget.ratio} of={budget.of!r} cannot be met: the layers in counts= alone lose "
            f"{removed / total:.4g}. Ask for ratio={np.ceil(removed / total * 1e4) / 1e4:.4g} or more."
        )


def most_within(plan: Callable[[float], T], within: Callable[[T], bool]) -> T:
    """The plan of the largest ratio that stays within a tolerance, to within a hundredth.

    Args:
        plan: Makes a plan of a ratio; a `BudgetError` says that it cannot be met.
        within: Whether a plan does. It is taken to be so up to some ratio, and not beyond.
    """
    best, low, high = plan(0.0), 0.0, 1.0
    while high - low > PRECISION:
        middle = (low + high) / 2
        try:
            tried = plan(middle)
        except BudgetError:
            high = middle
            continue
        if within(tried):
            best, low = tried, middle
        else:
            high = middle
    return best
