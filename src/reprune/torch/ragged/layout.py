"""Sizes of layers and directions, and which of them one fused call can run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Sizes = tuple[tuple[int, ...], ...]


class Stack(NamedTuple):
    """Neighbouring layers `first..stop-1` that one fused call can run, or one layer whose directions run apart."""

    first: int
    stop: int
    fused: bool


def checked(name: str, sizes: Sequence[Sequence[int]]) -> Sizes:
    """Sizes as tuples; a `ValueError` that names them unless each layer has one or two positive ones."""
    nested = tuple(tuple(int(size) for size in layer) for layer in sizes)
    directions = {len(layer) for layer in nested}
    if directions not in ({1}, {2}) or any(size < 1 for layer in nested for size in layer):
        raise ValueError(
            f"{name} must list one or two (forward, reverse) positive sizes per layer, as [[64, 60], [32, 40]]; "
            f"got {sizes!r}"
        )
    return nested


def common(sizes: Sizes) -> int | Sizes:
    """The size of all layers and directions if they share one, otherwise all of them."""
    distinct = {size for layer in sizes for size in layer}
    return distinct.pop() if len(distinct) == 1 else sizes


def stacks_of(hidden: Sizes, out: Sizes, *, projected: bool) -> list[Stack]:
    """Split the layers into as few calls as possible."""
    stacks: list[Stack] = []
    for layer, (units, emitted) in enumerate(zip(hidden, out, strict=True)):
        fused = len(set(units)) == len(set(emitted)) == 1 and not (projected and emitted[0] >= units[0])
        last = stacks[-1] if stacks else None
        if fused and last and last.fused and (hidden[layer - 1], out[layer - 1]) == (units, emitted):
            stacks[-1] = last._replace(stop=layer + 1)
        else:
            stacks.append(Stack(layer, layer + 1, fused))
    return stacks
