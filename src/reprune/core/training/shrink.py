"""The structure of a model that has lost units, so that it can be pruned again without another trace."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from reprune.core.layers import CarriedState, Port, Slot, Span, Structure

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
    return replace(
        structure,
        layers=layers,
        slots=slots,
        shapes={name: tuple(shape) for name, shape in shapes.items()},
        states=tuple(CarriedState(_port(one.given, kept), _port(one.returned, kept)) for one in structure.states),
        kept_states=tuple(port for port in (_port(one, kept) for one in structure.kept_states) if port is not None),
    )


def within(outer: Kept, inner: Kept) -> dict[str, list[int]]:
    """Indices into the units of the first model, of units that stay after two prunings in a row.

    Example:
        >>> within({"lstm:l0": [1, 4, 6]}, {"lstm:l0": [0, 2]})
        {'lstm:l0': [1, 6]}
    """
    return {name: [outer[name][unit] for unit in units] for name, units in inner.items()}


def _slot(slot: Slot, kept: Kept) -> Slot:
    spans, lost = _spans(slot.spans, kept)
    return replace(slot, size=slot.size - lost, spans=spans)


def _port(port: Port | None, kept: Kept) -> Port | None:
    if port is None:
        return None
    pieces = [_spans(spans, kept) for spans in port.pieces]
    return replace(port, size=port.size - pieces[0][1], pieces=tuple(spans for spans, _ in pieces))


def _spans(spans: Iterable[Span], kept: Kept) -> tuple[tuple[Span, ...], int]:
    """What is left of runs of positions, and how many positions go."""
    left = []
    lost = 0
    for span in spans:
        first, stop = (bisect_left(kept[span.layer], unit) for unit in (span.unit, span.unit + span.units))
        if stop > first:
            left.append(Span(span.start - lost, span.layer, first, stop - first, span.each))
        lost += (span.units - (stop - first)) * span.each
    return tuple(left), lost
