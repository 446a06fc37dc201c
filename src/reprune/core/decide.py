"""From evidence to a plan: allocation, criterion and budget put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from operator import itemgetter
from typing import Protocol

import numpy as np

from reprune.core.allocation import Allocation, Measured
from reprune.core.budget.budget import Block, Budget, allocate
from reprune.core.budget.cost import CostModel, Measure
from reprune.core.criteria import Ranking
from reprune.core.errors import PlanError, StatisticsError, UnsupportedModelError, did_you_mean
from reprune.core.evidence.evidence import Evidence, LayerEvidence
from reprune.core.folding.compensation import Ridges
from reprune.core.layers import Pin, Site, Structure, least_of
from reprune.core.methods import Method, get_method
from reprune.core.plan import Diagnostics, Plan
from reprune.core.progress import tell
from reprune.core.split import REFINED, Times, search, times

NEAR = 1.05
"""Splits whose divergence is within this factor of the least may still turn out best once consumers are refitted."""
CONTENDERS = 2
"""Of these, as many are refitted at most."""


class Judge(Protocol):
    """Measures the models that plans make.

    Attributes:
        refits: Whether consumers can be refitted.
    """

    refits: bool

    def divergence(self, plan: Plan, /) -> float:
        """How far the model of a plan is from the dense one."""

    def refitted(self, plan: Plan, /) -> tuple[float, Plan]:
        """The plan with its consumers refitted, and how far its model is then, on rows that it was not fitted to."""

    def regated(self, value: float, plan: Plan, /) -> Plan:
        """A refitted plan, which is so far, with its gates refitted, too, if that brings it nearer."""


def decide(
    evidence: Evidence,
    budget: Budget,
    method: str | Method,
    *,
    exclude: Sequence[str] = (),
    counts: Mapping[str, float] | None = None,
    seed: int = 0,
    judge: Judge | None = None,
) -> Plan:
    """Decide which units of which layer stay.

    Args:
        evidence: Weights and response statistics.
        budget: How much to remove.
        method: A name in `METHODS`, or a `Method`.
        exclude: Globs of layer names to leave alone. The plan's structure pins these layers and all that are coupled
            with them, so that they are no part of what `ratio` counts as units.
        counts: Sizes of some layers, by glob: units to keep (a whole number) or the fraction to remove (under 1). The
            budget is met with the other layers.
        seed: Seed of the criterion's randomness.
        judge: Measures the models of plans, for allocations that try several, and refits their consumers.

    Raises:
        UnsupportedModelError: When no layer is left that can be pruned.
        BudgetError: When the budget cannot be met.
        PlanError: When a glob of `exclude` or `counts` matches no layer, or a count is impossible.
        StatisticsError: When weights or responses hold NaN or infinite values; the layer is named.
    """
    resolved = get_method(method)
    allocation, criterion = resolved.resolve()
    rng = np.random.default_rng(seed)
    sets = free_blocks(evidence.structure, exclude)
    if not sets:
        raise _nothing_left(evidence.structure)
    structure = _pin_all_but(evidence.structure, sets)
    before, cost = structure.counts(), CostModel(structure, budget.latency)
    if budget.latency is not None:
        budget.latency.check_model(before)
    fixed = fixed_counts(sets, before, counts or {})
    # Layers that keep all of their units go on standing in for those of others.
    sets = [together for together in sets if fixed.get(together[0][0]) != before[together[0][0]]]
    names = [tuple(name for group in together for name in group) for together in sets]
    savings = [_saved(cost, budget.of, before, layers) if allocation.per_cost else 1.0 for layers in names]
    seen = [[[evidence.layers[name] for name in group] for group in together] for together in sets]
    # What overflows is no warning in passing: it makes a score that is not finite, and that is an error with a name.
    tell("scoring units")
    with np.errstate(over="ignore", invalid="ignore"):
        ranked = criterion.rank_all(seen, savings, rng)
    rankings = {g: r for groups, found in zip(sets, ranked, strict=True) for g, r in zip(groups, found, strict=True)}
    _check_scores(rankings)
    free = [
        _Free(held, [evidence.layers[name] for name in held], _joint(found), saving, least_of(structure, held))
        for held, found, saving in zip(names, ranked, savings, strict=True)
        if held[0] not in fixed
    ]
    spectra = _spectra(evidence, [name for group in rankings for name in group]) if allocation.needs_statistics else {}
    scores = {name: ranking.scores.tolist() for group, ranking in rankings.items() for name in group}

    def sizes_of(blocks: Sequence[Block]) -> dict[str, int]:
        return allocate(budget, blocks, cost, before, fixed, allocation.level)

    def plan(sizes: Mapping[str, int], ridges: Ridges | None = None) -> Plan:
        kept = {name: list(range(units)) for name, units in before.items()}
        for group, ranking in rankings.items():
            stay = sorted(ranking.order[before[group[0]] - sizes[group[0]] :].tolist())
            kept.update({name: list(stay) for name in group})
        return Plan(
            structure=structure,
            kept=kept,
            method=method if isinstance(method, str) else repr(method),
            ratio=_asked(budget, cost(budget.of, before), cost(budget.of, sizes)),
            of=budget.of,
            diagnostics=Diagnostics(scores, spectra),
            folds=resolved.compensate(structure, kept, evidence.readings, ridges),
            latency=budget.latency,
        )

    if isinstance(allocation, Measured) and judge is not None and len(free) > 1:
        ridges: Ridges = {}
        found = _measured(allocation, free, sizes_of, lambda sizes: judge.divergence(plan(sizes, ridges)))
    else:
        found = [sizes_of([block.thresholds(allocation) for block in free])]
    plans = [plan(sizes) for sizes in found]
    if judge is None or not resolved.refits or not judge.refits:
        return plans[0]
    return judge.regated(*min(map(judge.refitted, plans), key=itemgetter(0)))


@dataclass(frozen=True)
class _Free:
    """Layers whose sizes the allocation chooses together."""

    names: tuple[str, ...]
    layers: list[LayerEvidence]
    ranking: Ranking
    saving: float
    least: int

    def thresholds(self, allocation: Allocation) -> Block:
        found = allocation.thresholds(self.layers, self.ranking)
        return Block(self.names, found / self.saving if allocation.per_cost else found, self.least)


def _measured(
    allocation: Measured,
    free: Sequence[_Free],
    sizes_of: Callable[[Sequence[Block]], dict[str, int]],
    divergence: Callable[[Mapping[str, int]], float],
) -> list[dict[str, int]]:
    """Of the splits that are tried, those whose models answer most like the dense one: the best, and what is near."""
    known: dict[tuple[int, ...], tuple[float, dict[str, int]]] = {}

    def measure(found: Times) -> float:
        sizes = sizes_of([Block(block.names, share, block.least) for block, share in zip(free, found, strict=True)])
        key = tuple(sizes.values())
        if key not in known:
            tell("trying splits", len(known), 2 * len(allocation.ends) + 1 + REFINED)
            known[key] = divergence(sizes), sizes
        return known[key][0]

    def line(of: Allocation) -> Times:
        return times([block.thresholds(of).thresholds for block in free], [len(block.names) for block in free])

    search(line(allocation.origin), [line(end) for end in allocation.ends], measure)
    ranked = sorted(known.values(), key=itemgetter(0))
    least, best = ranked[0]
    # Rounding may make the least a little negative, where nothing is within a factor of it.
    return [best, *(tried for value, tried in ranked[1:CONTENDERS] if value <= NEAR * least)]


def _asked(budget: Budget, before: float, after: float) -> float:
    """The fraction that was to be removed; what was, where the method decided."""
    if budget.ratio is not None:
        return budget.ratio
    wanted = budget.removes(before)
    return 1.0 - after / before if wanted is None else wanted / before


def free_blocks(structure: Structure, exclude: Sequence[str] = ()) -> list[list[tuple[str, ...]]]:
    """Sets of index-coupled groups that lose units together; what is pinned, excluded or bound to such is left out.

    Raises:
        PlanError: When a glob of `exclude` matches no layer.
    """
    held = {name for name, layer in structure.layers.items() if layer.pin is not None} | excluded(structure, exclude)
    bonds = [*structure.index_coupled, *structure.count_coupled]
    while more := {name for bond in bonds if held & set(bond) for name in bond} - held:
        held |= more
    return _together(structure, [group for group in structure.index_coupled if not held & set(group)])


def as_globs(given: Sequence[str]) -> tuple[str, ...]:
    """Globs as they were given; a single string is one of them, not its letters."""
    return (given,) if isinstance(given, str) else tuple(given)


def excluded(structure: Structure, exclude: Sequence[str], option: str = "exclude") -> set[str]:
    """Names of the layers that match one of the globs.

    Raises:
        PlanError: When a glob matches no layer.
    """
    exclude = as_globs(exclude)
    for glob in exclude:
        if not any(matches(name, glob) for name in structure.layers):
            near = did_you_mean(glob, {*structure.layers, *(name.partition(":")[0] for name in structure.layers)})
            raise PlanError(f"{option}={glob!r} matches no layer.{near} The layers are: {', '.join(structure.layers)}.")
    return {name for name in structure.layers if any(matches(name, glob) for glob in exclude)}


def matches(name: str, glob: str) -> bool:
    """Whether a glob means a layer; that of a module means all of the module's layers.

    Example:
        >>> matches("encoder.lstm:l0_reverse", "encoder.lstm"), matches("encoder.lstm:l1", "*:l0*")
        (True, False)
    """
    return fnmatchcase(name, glob) or fnmatchcase(name, f"{glob}:*")


def left_out(structure: Structure, include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Globs of the layers to leave alone: those of `exclude`, and every layer that no glob of `include` matches.

    Raises:
        PlanError: When a glob matches no layer.
    """
    excluded(structure, exclude)
    matching = excluded(structure, include, "include") if include else set(structure.layers)
    return [*as_globs(exclude), *(name.replace("[", "[[]") for name in structure.layers if name not in matching)]


def fixed_counts(
    sets: Sequence[Sequence[tuple[str, ...]]], before: Mapping[str, int], counts: Mapping[str, float]
) -> dict[str, int]:
    """Units to keep in every layer of the sets that `counts` names, coupled layers together.

    Raises:
        PlanError: When a glob matches no layer that can be pruned, a value is impossible, or two contradict each other.
    """
    fixed: dict[str, int] = {}
    for glob, value in counts.items():
        named = [s for s in sets if any(matches(name, glob) for group in s for name in group)]
        if not named:
            free = ", ".join(name for entry in sets for group in entry for name in group)
            raise PlanError(f"counts[{glob!r}] matches no layer that can be pruned. Those are: {free}.")
        for names in ([name for group in entry for name in group] for entry in named):
            kept = _kept(glob, value, before[names[0]])
            if any(fixed.get(name, kept) != kept for name in names):
                raise PlanError(f"counts[{glob!r}]={value} contradicts another entry for {', '.join(names)}.")
            fixed.update(dict.fromkeys(names, kept))
    return fixed


def _kept(glob: str, value: float, units: int) -> int:
    whole = isinstance(value, (int, np.integer))
    if isinstance(value, bool) or not (1 <= value <= units if whole else 0 <= value < 1):
        raise PlanError(
            f"counts[{glob!r}]={value!r} is neither a number of units to keep (a whole number from 1 to {units}) nor a "
            "fraction to remove (from 0.0 to under 1.0)."
        )
    return int(value) if whole else max(round(units * (1 - value)), 1)


def _saved(cost: CostModel, of: Measure, before: Mapping[str, int], layers: Sequence[str]) -> float:
    """What the first unit of each of these layers saves; 1 where a measure does not see them.

    Of latency, a unit's share of what half of them save: measured times are too rough to be told apart unit by unit.
    """
    gone = max(before[layers[0]] // 2, 1) if of == "latency" else 1
    less = {**before, **{name: before[name] - gone for name in layers}}
    return (cost(of, before) - cost(of, less)) / gone or 1.0


def _nothing_left(structure: Structure) -> UnsupportedModelError:
    pins = [f"{name}: {layer.pin}" for name, layer in structure.layers.items() if layer.pin is not None]
    why = ("\n  " + "\n  ".join(pins)) if pins else " all are excluded." if structure.layers else " there is none."
    return UnsupportedModelError(f"No layer is left that can be pruned:{why}")


def _pin_all_but(structure: Structure, sets: Sequence[Sequence[tuple[str, ...]]]) -> Structure:
    free = {name for entry in sets for group in entry for name in group}
    pin = Pin(Site("include, exclude", ""), "excluded by your globs, or coupled with such a layer")
    layers = {
        name: layer if name in free or layer.pin is not None else replace(layer, pin=pin)
        for name, layer in structure.layers.items()
    }
    return replace(structure, layers=layers)


def _check_scores(rankings: Mapping[tuple[str, ...], Ranking]) -> None:
    for group, ranking in rankings.items():
        if not np.isfinite(ranking.scores).all():
            raise StatisticsError(
                f"{', '.join(group)}: some units have scores that are NaN or infinite. Check the weights of this layer "
                "and of those that read it: they hold NaN, infinite or overflowing values."
            )


def _together(structure: Structure, groups: Sequence[tuple[str, ...]]) -> list[list[tuple[str, ...]]]:
    """Groups merged along count-coupling: each list loses units at the same thresholds."""
    sets: list[list[tuple[str, ...]]] = [[group] for group in groups]
    for bond in structure.count_coupled:
        bound = [entry for entry in sets if any(name in bond for group in entry for name in group)]
        if len(bound) > 1:
            sets = [entry for entry in sets if entry not in bound] + [[group for entry in bound for group in entry]]
    return sets


def _joint(rankings: Sequence[Ranking]) -> Ranking:
    """Ranking that stands for count-coupled groups, whose j-th removals happen at once: their sorted scores, added."""
    if len(rankings) == 1:
        return rankings[0]
    total = np.sum([ranking.scores[ranking.order] for ranking in rankings], axis=0)
    return Ranking(np.arange(len(total)), total)


def _spectra(evidence: Evidence, names: Iterable[str]) -> dict[str, list[float]]:
    """Spectra of the layers whose responses were observed: for the record, not for the decision."""
    observed = (name for name in names if evidence.layers[name].moments is not None)
    return {name: evidence.layers[name].spectrum.tolist() for name in observed}
