"""The structure of a model that has lost units, so that it can be pruned again without another trace."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

from reprune.core.layers import Slot, Span, Structure

Kept = Mapping[str, Sequence[int]]


def shrunk(structure: Structure, kept: Kept) -> Structure:
    """What a trace of the smaller model would find.

    Args:
        structure: Of the model before.
        kept: Sorted indices of the units that stay, for every layer.
    """
    layers = {name: replace(layer, units=len(kept[name])) for name, layer in structure.layers.items()}
    slots = tuple(_slot(slot, kept) for slot in structure.slots)
    shapes = {name: list(shape) for name, shape in structure.shapes.items()}
    for slot in slots:
        shapes[slot.tensor][slot.axis] = slot.size
    return replace(structure, layers=layers, slots=slots, shapes={name: tuple(shape) for name, shape in shapes.items()})


def within(outer: Kept, inner: Kept) -> dict[str, list[int]]:
    """Indices into the units of the first model, of units that stay after two prunings in a row.

    Example:
        >>> within({"lstm:l0": [1, 4, 6]}, {"lstm:l0": [0, 2]})
        {'lstm:l0': [1, 6]}
    """
    return {name: [outer[name][unit] for unit in units] for name, units in inner.items()}


def _slot(slot: Slot, kept: Kept) -> Slot:
    spans = []
    lost = 0
    for span in slot.spans:
        first, stop = (bisect_left(kept[span.layer], unit) for unit in (span.unit, span.unit + span.units))
        if stop > first:
            spans.append(Span(span.start - lost, span.layer, first, stop - first, span.each))
        lost += (span.units - (stop - first)) * span.each
    return replace(slot, size=slot.size - lost, spans=tuple(spans))
