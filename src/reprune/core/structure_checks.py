"""Whether a structure that a file holds makes sense: its parts fit each other, and no length is impossible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from math import isfinite
from typing import Any

from reprune.core.errors import PlanError
from reprune.core.layers import Extent, Port, Slot, Span, Structure


def check_structure(structure: Structure) -> None:
    """Raise a `PlanError` unless the parts of a structure fit each other."""
    for name, layer in structure.layers.items():
        if layer.name != name or layer.units < 1:
            raise PlanError(f"layer {name!r}: named {layer.name!r} with {layer.units} units.")
    for name, shape in structure.shapes.items():
        if min(shape, default=0) < 0:
            raise PlanError(f"shape of {name!r}: {shape} has a negative length.")
    for slot in structure.slots:
        _check_slot(structure, slot)
    axes = [(slot.tensor, slot.axis) for slot in structure.slots]
    known = set(axes)
    if len(known) < len(axes):
        raise PlanError("slots must name every axis of a tensor once.")
    for consumer in structure.consumers:
        if (consumer.tensor, consumer.axis) not in known:
            raise PlanError(f"consumer {consumer.tensor!r} axis {consumer.axis}: the plan has no such slot.")
    check_known("buffers", structure.buffers, structure.shapes)
    for state in structure.states:
        for port in (state.given, state.returned):
            _check_port(structure, port)
    for port in structure.kept_states:
        _check_port(structure, port)
    _check_couplings(structure)
    _check_costs(structure)


def _check_couplings(structure: Structure) -> None:
    members = list(chain(*structure.index_coupled))
    if sorted(members) != sorted(structure.layers):
        raise PlanError("index_coupled must hold every layer exactly once.")
    check_known("count_coupled", chain(*structure.count_coupled), structure.layers)
    check_known("outside_states", structure.outside_states, structure.layers)
    for bond in (*structure.index_coupled, *structure.count_coupled):
        if len({structure.layers[name].units for name in bond}) != 1:
            raise PlanError(f"{bond} are coupled: they must be layers with equal numbers of units.")


def _check_costs(structure: Structure) -> None:
    if not (structure.steps > 0 and isfinite(structure.steps)):
        raise PlanError(f"steps={structure.steps} must be positive and finite.")
    for term in structure.contractions:
        if not (term.rows >= 0 and isfinite(term.rows)):
            raise PlanError(f"contraction with {term.rows} rows: it must be a finite number, not negative.")
        for extent in term.extents:
            _check_extent("contraction", extent, structure)
    for size in structure.sizes:
        where = f"size {size.owner}.{'.'.join(map(str, size.path))}"
        _check_extent(where, size.extent, structure)
        if min(size.times, size.divisor) < 1:
            raise PlanError(f"{where}: times {size.times} and divisor {size.divisor} must be at least 1.")


def _check_extent(where: str, extent: Extent, structure: Structure) -> None:
    check_known(where, (name for name, _ in extent.layers), structure.layers)
    if extent.fixed < 0 or any(times < 1 for _, times in extent.layers):
        raise PlanError(f"{where}: {extent} is no length of an axis.")


def check_known(where: str, names: Iterable[str], known: Mapping[str, Any]) -> None:
    """Raise a `PlanError` for a name that is not among those that the plan has."""
    for name in names:
        if name not in known:
            raise PlanError(f"{where} names {name!r}, which the plan does not have.")


def _check_slot(structure: Structure, slot: Slot) -> None:
    shape = structure.shapes.get(slot.tensor)
    if shape is None or not 0 <= slot.axis < len(shape) or shape[slot.axis] != slot.size:
        raise PlanError(f"slot {slot.tensor!r} axis {slot.axis}: does not fit the shape {shape} given for it.")
    _check_spans(structure, f"slot {slot.tensor!r}", slot.spans, slot.size)


def _check_port(structure: Structure, port: Port | None) -> None:
    if port is None:
        return
    where = f"state {port}"
    if not port.pieces or (port.along is None and len(port.pieces) > 1) or port.along == port.axis:
        raise PlanError(f"{where}: {len(port.pieces)} pieces along axis {port.along} do not fit units on {port.axis}.")
    # A file may claim any size, and positions are counted through.
    if min(port.axis, port.along or 0) < 0 or not 0 < port.size <= 1 << 24:
        raise PlanError(f"{where}: axis {port.axis} of length {port.size} along {port.along} is none of a tensor.")
    for spans in port.pieces:
        _check_spans(structure, where, spans, port.size)


def _check_spans(structure: Structure, where: str, spans: Iterable[Span], size: int) -> None:
    end = 0
    for span in spans:
        layer = structure.layers.get(span.layer)
        if layer is None:
            raise PlanError(f"{where} names {span.layer!r}, which is not a layer of the plan.")
        if min(span.start, span.unit) < 0 or min(span.units, span.each) < 1 or span.unit + span.units > layer.units:
            raise PlanError(f"{where}: {span} is outside the {layer.units} units of {span.layer!r}.")
        if span.start < end or span.start + span.units * span.each > size:
            raise PlanError(f"{where}: {span} overlaps another one or leaves the axis of {size}.")
        end = span.start + span.units * span.each
