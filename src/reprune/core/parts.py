"""Layers whose units are those of several others side by side, such as a decoder that starts from both directions.

So are layers that the model's code cuts at a place that a size says, such as a cell of which each half makes an output.
They are taken apart where the partners change: each part loses the same units as its partner, at an offset.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class Part(NamedTuple):
    """Units `start` to `stop` of a layer."""

    layer: str
    start: int
    stop: int


def in_parts(
    layers: Mapping[str, Ids],
    classes: Callable[[Ids], Ids],
    bonds: Iterable[Sequence[str]],
    seams: Iterable[tuple[int, int]] = (),
) -> dict[str, Part]:
    """The layers by name, those that need it in parts (`decoder:l0:0-7`, `decoder:l0:8-15`).

    Args:
        layers: The labels of the units of each layer.
        classes: The class of each label: positions that go together.
        bonds: Layers that must keep equal numbers of units: these are cut at the same places.
        seams: Labels of neighbours between which the model's code cuts.
    """
    roots = {name: classes(labels) for name, labels in layers.items()}
    cuts = _seams(roots)
    cut_between = {tuple(classes(np.array(pair)).tolist()) for pair in seams}
    for name, held in roots.items():
        cuts[name] |= {k for k, pair in enumerate(pairwise(held.tolist()), 1) if pair in cut_between}
    # Widths, which are no layers here, may be bound to each other, too.
    bonds = [bond for bond in bonds if roots.keys() >= set(bond) and len({len(roots[name]) for name in bond}) == 1]
    while _share(cuts, bonds) or _spread(cuts, roots):
        pass
    found: dict[str, Part] = {}
    for name, labels in layers.items():
        ends = sorted(cuts[name])
        if len(ends) < 2:
            found[name] = Part(name, 0, len(labels))
            continue
        for start, stop in zip([0, *ends], ends, strict=False):
            found[f"{name}:{start}-{stop - 1}"] = Part(name, start, stop)
    return found


def is_part(seams: Collection[tuple[int, int]], layer: Ids, units: Ids) -> bool:
    """Whether these are the units between two seams of a layer, or between it and an end: labels that count up."""
    start, stop = int(units[0]), int(units[-1]) + 1
    if stop - start != len(units) or not layer[0] <= start < stop <= layer[-1] + 1:
        return False
    return (start == layer[0] or (start - 1, start) in seams) and (stop > layer[-1] or (stop - 1, stop) in seams)


def _seams(roots: Mapping[str, Ids]) -> dict[str, set[int]]:
    """For each layer the positions at which a part ends: where it is coupled with others than before."""
    where: dict[int, list[tuple[str, int]]] = {}
    for name, held in roots.items():
        for place, root in enumerate(held.tolist()):
            where.setdefault(root, []).append((name, place))
    cuts = {}
    for name, held in roots.items():
        partners = [frozenset((other, at - place) for other, at in where[root]) for place, root in enumerate(held)]
        ends = {k for k in range(1, len(held)) if partners[k] != partners[k - 1]}
        once, all_ends = len(np.unique(held)) == len(held), sorted({0, *ends, len(held)})
        # Units that are coupled one by one with those of several layers are out of order.
        whole = max(np.diff(all_ends), default=0) > 1
        cuts[name] = ends | {len(held)} if once and whole else {len(held)}
    return cuts


def _share(cuts: dict[str, set[int]], bonds: Iterable[Sequence[str]]) -> bool:
    """Layers that must keep equal numbers of units do so part by part; returns whether that cuts any."""
    changed = False
    for bond in bonds:
        union = set[int]().union(*(cuts[name] for name in bond))
        changed |= any(cuts[name] != union for name in bond)
        cuts.update({name: set(union) for name in bond})
    return changed


def _spread(cuts: dict[str, set[int]], roots: Mapping[str, Ids]) -> bool:
    """Layers of the same units are cut at the same ones; returns whether that cuts any."""
    places = {name: {root: place for place, root in enumerate(held.tolist())} for name, held in roots.items()}
    changed = False
    for name, ends in list(cuts.items()):
        for end in [end for end in ends if end < len(roots[name])]:
            before, after = int(roots[name][end - 1]), int(roots[name][end])
            for other, held in places.items():
                at = held.get(after)
                if at and held.get(before) == at - 1 and at not in cuts[other]:
                    cuts[other].add(at)
                    changed = True
    return changed


def parts_of(wholes: Mapping[str, str], bond: Sequence[str]) -> list[tuple[str, ...]]:
    """A bond of whole layers as bonds of their parts.

    Args:
        wholes: For every layer, or part of one, the name of the whole layer.
        bond: Names of whole layers.
    """
    pieces = [[name for name, whole in wholes.items() if whole == one] for one in bond]
    pieces = [piece for piece in pieces if piece]
    if len({len(piece) for piece in pieces}) > 1:
        return [tuple(name for piece in pieces for name in piece)]
    return [bound for bound in zip(*pieces, strict=True) if len(bound) > 1]
