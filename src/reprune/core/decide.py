"""From evidence to a plan: allocation, criterion and budget put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from reprune.core.budget import Block, Budget, allocate
from reprune.core.cost import CostModel
from reprune.core.criteria import Ranking
from reprune.core.errors import PlanError, StatisticsError, UnsupportedModelError
from reprune.core.evidence import Evidence
from reprune.core.layers import Pin, Site, Structure
from reprune.core.methods import Method, get_method
from reprune.core.plan import Diagnostics, Plan


def decide(
    evidence: Evidence, budget: Budget, method: str | Method, *, exclude: Sequence[str] = (), seed: int = 0
) -> Plan:
    """Decide which units of which layer stay.

    Args:
        evidence: Weights and response statistics.
        budget: How much to remove.
        method: A name in `METHODS`, or a `Method`.
        exclude: Globs of layer names to leave alone. The plan's structure pins these layers and all that are coupled
            with them, so that they are no part of what `ratio` counts as units.
        seed: Seed of the criterion's randomness.

    Raises:
        UnsupportedModelError: When no layer is left that can be pruned.
        BudgetError: When the budget cannot be met.
        PlanError: When a glob of `exclude` matches no layer.
        StatisticsError: When weights or responses hold NaN or infinite values; the layer is named.
    """
    resolved = get_method(method)
    allocation, criterion = resolved.resolve()
    rng = np.random.default_rng(seed)
    sets = free_blocks(evidence.structure, exclude)
    if not sets:
        raise _nothing_left(evidence.structure)
    structure = _pin_all_but(evidence.structure, sets)
    groups = [group for entry in sets for group in entry]
    # What overflows is no warning in passing: it makes a score that is not finite, and that is an error with a name.
    with np.errstate(over="ignore", invalid="ignore"):
        rankings = {group: criterion.rank([evidence.layers[name] for name in group], rng) for group in groups}
    _check_scores(rankings)
    blocks = []
    for together in sets:
        layers = tuple(name for group in together for name in group)
        ranking = _joint([rankings[group] for group in together])
        thresholds = allocation.thresholds([evidence.layers[name] for name in layers], ranking)
        blocks.append(Block(layers, thresholds))

    before = structure.counts()
    counts = allocate(budget, blocks, CostModel(structure), before)
    kept = {name: list(range(units)) for name, units in before.items()}
    for group, ranking in rankings.items():
        stay = sorted(ranking.order[before[group[0]] - counts[group[0]] :].tolist())
        kept.update({name: list(stay) for name in group})
    scores = {name: ranking.scores.tolist() for group, ranking in rankings.items() for name in group}
    return Plan(
        structure=structure,
        kept=kept,
        method=method if isinstance(method, str) else repr(method),
        ratio=budget.ratio,
        of=budget.of,
        diagnostics=Diagnostics(scores, _spectra(evidence, scores) if allocation.needs_statistics else {}),
        folds=resolved.compensate(structure, kept, evidence.readings),
    )


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


def excluded(structure: Structure, exclude: Sequence[str]) -> set[str]:
    """Names of the layers that match one of the globs.

    Raises:
        PlanError: When a glob matches no layer.
    """
    for glob in exclude:
        if not any(fnmatchcase(name, glob) for name in structure.layers):
            raise PlanError(f"exclude={glob!r} matches no layer. The layers are: {', '.join(structure.layers)}.")
    return {name for name in structure.layers if any(fnmatchcase(name, glob) for glob in exclude)}


def _nothing_left(structure: Structure) -> UnsupportedModelError:
    pins = [f"{name}: {layer.pin}" for name, layer in structure.layers.items() if layer.pin is not None]
    why = ("\n  " + "\n  ".join(pins)) if pins else " all are excluded." if structure.layers else " there is none."
    return UnsupportedModelError(f"No recurrent layer is left that can be pruned:{why}")


def _pin_all_but(structure: Structure, sets: Sequence[Sequence[tuple[str, ...]]]) -> Structure:
    free = {name for entry in sets for group in entry for name in group}
    pin = Pin(Site("exclude", ""), "excluded, or coupled with a layer that is")
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


def _spectra(evidence: Evidence, names: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: evidence.layers[name].spectrum.tolist() for name in names}
