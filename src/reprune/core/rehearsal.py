"""What both frameworks rehearse: the removal of units drawn at random, from layers that lose theirs together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from reprune.core.decide import excluded, free_blocks
from reprune.core.layers import Pin, Site, Structure, least_of
from reprune.core.plan import Plan

Blocks = Sequence[Sequence[str]]


def held_back(structure: Structure, exclude: Sequence[str]) -> dict[str, Pin]:
    """Pins of the layers that must stay: those the trace found, and those that a glob of `exclude` matches."""
    held = {name: Pin(Site("include, exclude", ""), "excluded by your globs") for name in excluded(structure, exclude)}
    return {**held, **{name: layer.pin for name, layer in structure.layers.items() if layer.pin is not None}}


def blocks_of(structure: Structure) -> list[list[str]]:
    """Names of layers that lose units together."""
    return [[name for group in entry for name in group] for entry in free_blocks(structure)]


def random_plan(structure: Structure, blocks: Iterable[Sequence[str]], seed: int = 0) -> Plan:
    """A plan that removes about half of the units of these blocks at random, different numbers where that is free."""
    rng = np.random.default_rng(seed)
    taken: dict[int, set[int]] = {}
    last: dict[int, int] = {}
    kept = {name: list(range(layer.units)) for name, layer in structure.layers.items()}
    # A layer that is cut in parts is as wide as they are together: they are drawn first, and no other becomes as wide.
    owners = {frozenset(span.layer for span in slot.spans) for slot in structure.slots if slot.role == "own"}
    cut = [names for names in owners if len(names) > 1]
    for block in sorted(blocks, key=lambda block: all(names.isdisjoint(block) for names in cut)):
        units = structure.layers[block[0]].units
        least = least_of(structure, block)
        if units <= least:
            continue
        wanted = units * rng.uniform(0.35, 0.65)
        # Equal numbers by chance would hide code that only works with those. Where all are taken they go round again,
        # but for the last one: neighbours differ.
        free = set(range(least, units)) - taken.setdefault(units, set())
        if not free:
            taken[units] = {last[units]} if units in last and units > least + 1 else set()
            free = set(range(least, units)) - taken[units]
        count = last[units] = min(free, key=lambda number: abs(number - wanted))
        taken[units].add(count)
        for group in structure.index_coupled:
            if group[0] in block:
                stay = sorted(rng.choice(units, size=count, replace=False).tolist())
                kept.update({name: list(stay) for name in group})
        for names in (names for names in cut if not names.isdisjoint(block)):
            whole = sum(structure.layers[name].units for name in names)
            taken.setdefault(whole, set()).add(sum(len(kept[name]) for name in names))
    return Plan(structure, kept)


def inexact(plan: Plan) -> bool:
    """Whether a plan removes units of a layer that is declared approximate."""
    removed = plan.removed()
    return any(layer.approximate is not None and removed[name] for name, layer in plan.structure.layers.items())
