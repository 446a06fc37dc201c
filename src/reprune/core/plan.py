"""The plan: which units of which layer stay, as inert JSON that is checked before it is used."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from reprune.core.cost import Measure
from reprune.core.errors import PlanError
from reprune.core.layers import Layer, Slot, Span, Structure

FORMAT = "reprune-plan"
VERSION = 1


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
                values = np.frombuffer(base64.b64decode(getattr(self, name), validate=True), dtype="<f8").reshape(shape)
            except ValueError as error:
                raise PlanError(f"fold of {self.tensor!r}: its {name} are not {shape} doubles ({error}).") from None
            if not np.isfinite(values).all():
                raise PlanError(f"fold of {self.tensor!r}: its {name} hold NaN or infinite values.")
            found.append(values)
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
        of: What the fraction is of: `units`, `parameters` or `macs`.
        diagnostics: What the decision was based on.
        folds: Corrections of the consumers that make up for what the removed units carried.

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

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise PlanError(f"ratio={self.ratio} is not a fraction from 0 to under 1.")
        _check_structure(self.structure)
        _check_kept(self.structure, self.kept)
        _check_folds(self)

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
        """
        chosen = {**self.kept, **{name: list(units) for name, units in kept.items()}}
        return replace(self, kept=chosen, method="custom", folds=())

    def to_json(self) -> str:
        """The plan as JSON text: one line per field."""
        fields = {name: getattr(self, name) for name in _Document.__dataclass_fields__ if hasattr(self, name)}
        document = _ADAPTER.dump_python(_Document(FORMAT, VERSION, **fields), mode="json")
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
        try:
            document = _ADAPTER.validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "top level"
            raise PlanError(f"Not a valid plan: {where}: {first['msg']}. Write plans with Plan.to_json().") from None
        if document.format != FORMAT or document.version != VERSION:
            raise PlanError(
                f"Not a plan this version reads: format {document.format!r} version {document.version}, "
                f"expected {FORMAT!r} version {VERSION}."
            )
        fields = {name: getattr(document, name) for name in Plan.__dataclass_fields__}
        return Plan(**fields)


@dataclass(frozen=True)
class _Document:
    """The fields of a plan file, in the order in which they are written."""

    format: str
    version: int
    method: str
    ratio: float
    of: Measure
    kept: Mapping[str, list[int]]
    structure: Structure
    diagnostics: Diagnostics
    folds: tuple[Fold, ...] = ()


_ADAPTER = TypeAdapter(_Document)


def _check_structure(structure: Structure) -> None:
    for name, layer in structure.layers.items():
        if layer.name != name or layer.units < 1:
            raise PlanError(f"layer {name!r}: named {layer.name!r} with {layer.units} units.")
    for slot in structure.slots:
        _check_slot(structure, slot)
    members = [name for group in structure.index_coupled for name in group]
    if sorted(members) != sorted(structure.layers):
        raise PlanError("index_coupled must hold every layer exactly once.")
    for name in [name for bond in structure.count_coupled for name in bond]:
        if name not in structure.layers:
            raise PlanError(f"count_coupled names {name!r}, which is not a layer of the plan.")
    if not structure.steps > 0:
        raise PlanError(f"steps={structure.steps} must be positive.")
    for size in structure.sizes:
        if size.divisor < 1:
            raise PlanError(f"size {size.owner}.{size.path}: divisor {size.divisor}.")


def _check_slot(structure: Structure, slot: Slot) -> None:
    shape = structure.shapes.get(slot.tensor)
    if shape is None or not 0 <= slot.axis < len(shape) or shape[slot.axis] != slot.size:
        raise PlanError(f"slot {slot.tensor!r} axis {slot.axis}: does not fit the shape {shape} given for it.")
    end = 0
    for span in slot.spans:
        layer = structure.layers.get(span.layer)
        if layer is None:
            raise PlanError(f"slot {slot.tensor!r} names {span.layer!r}, which is not a layer of the plan.")
        if min(span.start, span.unit) < 0 or min(span.units, span.each) < 1 or span.unit + span.units > layer.units:
            raise PlanError(f"slot {slot.tensor!r}: {span} is outside the {layer.units} units of {span.layer!r}.")
        if span.start < end or span.start + span.units * span.each > slot.size:
            raise PlanError(f"slot {slot.tensor!r}: {span} overlaps another one or leaves the axis of {slot.size}.")
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


def _check_folds(plan: Plan) -> None:
    slots = {(slot.tensor, slot.axis): slot for slot in plan.structure.slots}
    removed = plan.removed()
    for fold in plan.folds:
        slot = slots.get((fold.tensor, fold.axis))
        if slot is None or slot.role != "reads":
            raise PlanError(f"fold of {fold.tensor!r} axis {fold.axis}: no consumer of the plan.")
        gone = sum(len(_within(removed[span.layer], span)) * span.each for span in slot.spans)
        fold.arrays(gone, slot.size - gone)


def _within(units: list[int], span: Span) -> list[int]:
    return [unit for unit in units if span.unit <= unit < span.unit + span.units]
