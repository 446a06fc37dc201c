"""The plan: which units of which layer stay, as inert JSON that is checked before it is used."""

from __future__ import annotations

import base64
import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from math import isfinite, prod
from operator import index
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from reprune.core.cost import MEASURES, Measure
from reprune.core.errors import PlanError
from reprune.core.latency import LatencyTable
from reprune.core.layers import Consumer, Extent, Layer, Port, Slot, Span, Structure

FORMAT = "reprune-plan"
VERSION = 1

T = TypeVar("T")


@dataclass(frozen=True)
class Diagnostics:
    """What the decision was based on, for reports. Surgery does not read it.

    Attributes:
        scores: The criterion's score of every unit by layer (units); small scores go first.
        spectra: Eigenvalues of the response covariance by layer (units), largest first; empty when not used.
    """

    scores: Mapping[str, list[float]] = field(default_factory=dict)
    spectra: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Fold:
    """A correction of one consumer: what it read from removed positions, predicted from the positions that stay.

    With its columns split into removed P and kept K: `W_K += W_P A` and `bias += W_P b`.

    Attributes:
        tensor: Name of the weight.
        axis: The axis that is contracted with the units.
        bias: Name of the bias that takes up the offsets, or None.
        coefficients: A (removed × kept) as base64 of little-endian doubles, row by row.
        offsets: b (removed), likewise.
    """

    tensor: str
    axis: int
    bias: str | None
    coefficients: str
    offsets: str

    @classmethod
    def of(
        cls, tensor: str, axis: int, bias: str | None, coefficients: NDArray[np.float64], offsets: NDArray[np.float64]
    ) -> Fold:
        """From arrays."""
        return cls(tensor, axis, bias, _encode(coefficients), _encode(offsets))

    def arrays(self, removed: int, kept: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A (removed × kept) and b (removed).

        Raises:
            PlanError: When they do not have these sizes, or are not finite numbers.
        """
        found = []
        for name, shape in (("coefficients", (removed, kept)), ("offsets", (removed,))):
            try:
                values = np.frombuffer(base64.b64decode(getattr(self, name), validate=True), dtype="<f8")
            except ValueError as error:
                raise PlanError(f"fold of {self.tensor!r}: its {name} are not base64 of doubles ({error}).") from None
            if len(values) != prod(shape):
                raise PlanError(f"fold of {self.tensor!r}: {len(values)} {name}, expected {shape}.")
            if not np.isfinite(values).all():
                raise PlanError(f"fold of {self.tensor!r}: its {name} hold NaN or infinite values.")
            found.append(values.reshape(shape))
        return found[0], found[1]


def _encode(values: NDArray[np.float64]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode()


@dataclass(frozen=True)
class Plan:
    """Which units stay.

    Attributes:
        structure: Where the units of the model live.
        kept: Sorted indices of the units that stay, for every layer: `{"lstm:l0": [0, 3, 4], …}`.
        method: Name of the method that decided.
        ratio: Fraction that was to be removed.
        of: What the fraction is of: `units`, `parameters`, `macs` or `latency`.
        diagnostics: What the decision was based on.
        folds: Corrections of the consumers that make up for what the removed units carried.
        latency: Measured times, where the decision looked at them.

    Raises:
        PlanError: When the parts contradict each other.

    Example:
        >>> plan = Plan.from_json(text)               # doctest: +SKIP
        >>> plan.kept["lstm:l0"]                      # doctest: +SKIP
        [0, 3, 4]
    """

    structure: Structure
    kept: Mapping[str, list[int]]
    method: str = "custom"
    ratio: float = 0.0
    of: Measure = "units"
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    folds: tuple[Fold, ...] = ()
    latency: LatencyTable | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise PlanError(f"ratio={self.ratio} is not a fraction from 0 to under 1.")
        if self.of not in MEASURES:
            raise PlanError(f"of={self.of!r} is not one of {', '.join(MEASURES)}.")
        _check_structure(self.structure)
        _check_kept(self.structure, self.kept)
        _check_diagnostics(self.structure, self.diagnostics)
        _check_folds(self.structure, self.kept, self.folds)
        if self.latency is not None:
            self.latency.check_model(self.structure.counts())
        elif self.of == "latency":
            raise PlanError("of='latency' needs the latency table that the plan was made from.")

    def counts(self) -> dict[str, int]:
        """Number of units that stay, by layer."""
        return {name: len(units) for name, units in self.kept.items()}

    def removed(self) -> dict[str, list[int]]:
        """Sorted indices of the units that go, for every layer."""
        gone = {}
        for name, layer in self.structure.layers.items():
            stay = set(self.kept[name])
            gone[name] = [unit for unit in range(layer.units) if unit not in stay]
        return gone

    def with_kept(self, kept: Mapping[str, Sequence[int]]) -> Plan:
        """The same plan with other units kept in some layers.

        Raises:
            PlanError: When the result breaks a coupling, or names unknown layers or units.

        Example:
            >>> plan.with_kept({"lstm:l0": range(0, 512, 2)})   # doctest: +SKIP
        """
        try:
            chosen = {**self.kept, **{name: [_unit(unit) for unit in units] for name, units in kept.items()}}
        except TypeError as error:
            raise PlanError(f"kept must hold lists of unit indices by layer: {error}.") from None
        return replace(self, kept=chosen, method="custom", folds=())

    def to_json(self) -> str:
        """The plan as JSON text: one line per field."""
        fields = {name: getattr(self, name) for name in Plan.__dataclass_fields__}
        document = _DOCUMENT.dump_python(_Document(FORMAT, VERSION, **fields), mode="json")
        return (
            "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items()) + "\n}\n"
        )

    @staticmethod
    def from_json(text: str | bytes) -> Plan:
        """Read a plan from JSON text, checking everything.

        Raises:
            PlanError: When the text is not JSON, not a plan, of another version, or contradicts itself. The message
                says where.
        """
        # First what it claims to be: the fields of another version would only look like mistakes.
        head = _parse(_HEAD, text)
        if head.format != FORMAT or head.version != VERSION:
            raise PlanError(
                f"Not a plan this version reads: format {head.format!r} version {head.version}, "
                f"expected {FORMAT!r} version {VERSION}."
            )
        document = _parse(_DOCUMENT, text)
        fields = {name: getattr(document, name) for name in Plan.__dataclass_fields__}
        return Plan(**fields)


@dataclass(frozen=True)
class _Head:
    """What every version of a plan file begins with."""

    format: str
    version: int


@dataclass(frozen=True)
class _Document(_Head):
    """The fields of a plan file, in the order in which they are written; all that it holds is as strict."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    method: str
    ratio: float
    of: Measure
    kept: Mapping[str, list[int]]
    structure: Structure
    diagnostics: Diagnostics
    folds: tuple[Fold, ...] = ()
    latency: LatencyTable | None = None


_HEAD = TypeAdapter(_Head)
_DOCUMENT = TypeAdapter(_Document)


def _parse(adapter: TypeAdapter[T], text: str | bytes) -> T:
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        raise PlanError(f"Not a valid plan: {where}: {first['msg']}. Write plans with Plan.to_json().") from None


def _unit(value: Any) -> int:
    # A mask in place of indices would pass for units 0 and 1.
    if isinstance(value, bool):
        raise TypeError(f"{value} is no index")
    return index(value)


def _check_structure(structure: Structure) -> None:
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
    _check_known("buffers", structure.buffers, structure.shapes)
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
    _check_known("count_coupled", chain(*structure.count_coupled), structure.layers)
    _check_known("outside_states", structure.outside_states, structure.layers)
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
    _check_known(where, (name for name, _ in extent.layers), structure.layers)
    if extent.fixed < 0 or any(times < 1 for _, times in extent.layers):
        raise PlanError(f"{where}: {extent} is no length of an axis.")


def _check_known(where: str, names: Iterable[str], known: Mapping[str, Any]) -> None:
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
    if min(port.axis, port.axis if port.along is None else port.along, port.size - 1) < 0:
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


def _check_kept(structure: Structure, kept: Mapping[str, list[int]]) -> None:
    if set(kept) != set(structure.layers):
        wrong = sorted(set(kept) ^ set(structure.layers))
        raise PlanError(f"kept must name the layers {sorted(structure.layers)}: {wrong} differ.")
    for name, units in kept.items():
        _check_units(structure.layers[name], units)
    for group in structure.index_coupled:
        for name in group[1:]:
            if kept[name] != kept[group[0]]:
                raise PlanError(f"{group[0]!r} and {name!r} are coupled: they must keep the same units.")
    for bond in structure.count_coupled:
        if len({len(kept[name]) for name in bond}) > 1:
            sizes = {name: len(kept[name]) for name in bond}
            raise PlanError(f"These layers must keep equal numbers of units: {sizes}.")


def _check_units(layer: Layer, units: list[int]) -> None:
    where = f"kept[{layer.name!r}]"
    if not units:
        raise PlanError(f"{where} is empty: a layer needs at least one unit.")
    for unit in units:
        if type(unit) is not int or not 0 <= unit < layer.units:
            raise PlanError(f"{where} holds {unit!r}: not a unit from 0 to {layer.units - 1}.")
    if any(second <= first for first, second in pairwise(units)):
        raise PlanError(f"{where} must be sorted and without duplicates.")
    if layer.pin is not None and len(units) < layer.units:
        raise PlanError(f"{where} drops units of a layer that must stay whole: {layer.pin}.")


def _check_diagnostics(structure: Structure, diagnostics: Diagnostics) -> None:
    for kind, found in (("scores", diagnostics.scores), ("spectra", diagnostics.spectra)):
        _check_known(kind, found, structure.layers)
        for name, values in found.items():
            if values and len(values) != structure.layers[name].units:
                raise PlanError(
                    f"{kind}[{name!r}] holds {len(values)} values for {structure.layers[name].units} units."
                )
            if not all(map(isfinite, values)):
                raise PlanError(f"{kind}[{name!r}] holds NaN or infinite values.")


def _check_folds(structure: Structure, kept: Mapping[str, list[int]], folds: tuple[Fold, ...]) -> None:
    slots = {(slot.tensor, slot.axis): slot for slot in structure.slots}
    left = set(structure.consumers)
    for fold in folds:
        consumer = Consumer(fold.tensor, fold.axis, fold.bias)
        if consumer not in left:
            raise PlanError(f"fold of {consumer}: the plan has no such consumer, or it is folded twice.")
        left.remove(consumer)
        slot = slots[fold.tensor, fold.axis]
        # From what stays, which the file lists: a claimed number of units may be too large to count through.
        gone = sum(
            (span.units - _among(kept[span.layer], span.unit, span.unit + span.units)) * span.each
            for span in slot.spans
        )
        fold.arrays(gone, slot.size - gone)


def _among(units: list[int], start: int, end: int) -> int:
    return bisect_left(units, end) - bisect_left(units, start)
