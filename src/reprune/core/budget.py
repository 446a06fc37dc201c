"""Meeting a budget: one search over the thresholds of all layers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reprune.core.cost import MEASURES, CostModel, Measure
from reprune.core.errors import BudgetError

Step = tuple[float, int, int]
"""A permitted shrinking: threshold, block, units kept after it."""


@dataclass(frozen=True)
class Budget:
    """How much to remove, and the bounds that every layer keeps.

    Attributes:
        ratio: Fraction to remove, at least 0 and under 1; None where the allocation decides by itself.
        of: What is counted: `units` of the prunable layers, or `parameters` or `macs` of the whole model.
        min_units: Units that every layer keeps at least (a smaller layer keeps all of its own).
        round_to: Units kept are a multiple of this (a layer that loses none keeps its size).

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


@dataclass(frozen=True)
class Block:
    """Layers that lose units together.

    Attributes:
        layers: Their names.
        thresholds: Thresholds at which each of them loses its first, second, … unit (units), never decreasing.
    """

    layers: tuple[str, ...]
    thresholds: NDArray[np.float64]


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
    that removes less when both are equally near. Where the step that would go too far takes units from several layers
    at once, smaller steps of other blocks fill up what is missing, in the same order.

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

    if budget.ratio is None:
        if level is None:
            raise BudgetError("This method has no size of its own: give ratio=, the fraction to remove.")
        return _after(start, blocks, [step for step in steps if step[0] <= level])
    target = budget.ratio * total
    # A budget that is met exactly counts as met, and a tie as a tie, in spite of rounding in ratio · total.
    rounding = 1e-9 * total
    taken = bisect_left(range(len(steps) + 1), target - rounding, key=lambda count: removed(steps[:count]))
    if taken > len(steps):
        taken = len(steps)
        _check_reachable(budget, blocks, removed(steps), target, total)
    if taken == 0:
        if fixed:
            _check_fixed(budget, removed([]), target, total)
        return start
    less, more = steps[: taken - 1], steps[:taken]
    if removed(more) > target + rounding and len(blocks[steps[taken - 1][1]].layers) > 1:
        less = _fill_up(less, steps[taken:], lambda trial: target + rounding - removed(trial))
    nearer = target - removed(less) <= removed(more) - target + rounding
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
        for kept in range(units - 1, budget.min_units - 1, -1):
            if kept % budget.round_to == 0:
                steps.append((float(block.thresholds[units - kept - 1]), index, kept))
    # Equal thresholds: larger sizes first, so that every block's steps stay in order.
    return sorted(steps, key=lambda step: (step[0], -step[2], step[1]))


def _after(before: Mapping[str, int], blocks: Sequence[Block], steps: Sequence[Step]) -> dict[str, int]:
    counts = dict(before)
    last = {index: kept for _, index, kept in steps}
    for index, kept in last.items():
        counts.update(dict.fromkeys(blocks[index].layers, kept))
    return counts


def _check_reachable(budget: Budget, blocks: Sequence[Block], removed: float, target: float, total: float) -> None:
    # With the default bounds every layer keeps one unit: a unit budget is met to within that one unit per layer.
    slack = float(sum(len(block.layers) for block in blocks)) if budget.of == "units" and budget.min_units == 1 else 0.0
    if target - removed > slack + 1e-9 * total:
        raise BudgetError(
            f"ratio={budget.ratio} of={budget.of!r} cannot be met: with min_units={budget.min_units}, "
            f"round_to={budget.round_to} and the layers left out, at most {removed / total:.4g} can be removed. "
            f"Ask for ratio={np.floor(removed / total * 1e4) / 1e4:.4g} or less, or loosen the bounds."
        )


def _check_fixed(budget: Budget, removed: float, target: float, total: float) -> None:
    if removed > target + 1e-9 * total:
        raise BudgetError(
            f"ratio={budget.ratio} of={budget.of!r} cannot be met: the layers in counts= alone lose "
            f"{removed / total:.4g}. Ask for ratio={np.ceil(removed / total * 1e4) / 1e4:.4g} or more."
        )
