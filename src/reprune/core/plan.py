"""The plan: which units of which layer stay, as inert JSON that is checked before it is used."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from operator import index
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from reprune.core.budget.cost import MEASURES, Measure
from reprune.core.budget.latency import LatencyTable
from reprune.core.errors import PlanError, PlanWarning, warn
from reprune.core.folding.fold import Fold, Refit
from reprune.core.layers import Consumer, Layer, Structure
from reprune.core.structure_checks import check_known, check_structure

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


@dataclass(frozen=True, repr=False)
class Plan:
    """Which units of which layer stay: a decision as plain data, which `apply` carries out on a copy of the model.

    Attributes:
        structure: The model's layers, the weights that read their units, and what ties or pins them.
        kept: Sorted indices of the units that stay, for every layer: `{"lstm:l0": [0, 3, 4], …}`.
        method: Name of the method that decided.
        ratio: Fraction that was to be removed.
        of: What the fraction is of: `units`, `parameters`, `macs` or `latency`.
        diagnostics: What the decision was based on.
        folds: Corrections of the weights that read units; they make up for what the removed ones carried.
        latency: Measured times, where the decision looked at them.
        fitted_to: Digest of the weights that the plan was made from (`core.saving.digest`); None if it is not known.
        refits: What some tensors hold in the pruned model, so that it answers as the dense one does.
        folded: Whether the corrections are not in the plan any more, but in the weights that were saved with the plan.

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
    fitted_to: str | None = None
    folded: bool = False
    refits: tuple[Refit, ...] = ()

    # What notebooks show. It is given by `report.notebook`, which the core does not know.
    _repr_html_: ClassVar[Callable[[Plan], str]]

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise PlanError(f"ratio={self.ratio} is not a fraction from 0 to under 1.")
        if self.of not in MEASURES:
            raise PlanError(f"of={self.of!r} is not one of {', '.join(MEASURES)}.")
        check_structure(self.structure)
        _check_kept(self.structure, self.kept)
        _check_diagnostics(self.structure, self.diagnostics)
        _check_folds(self.structure, self.kept, self.folds)
        _check_refits(self)
        if self.latency is not None:
            self.latency.check_model(self.structure.counts())
        elif self.of == "latency":
            raise PlanError("of='latency' needs the latency table that the plan was made from.")

    def __repr__(self) -> str:
        stay, units = sum(self.counts().values()), sum(self.structure.counts().values())
        return f"Plan({self.method}: {stay} of {units} units stay)"

    def counts(self) -> dict[str, int]:
        """Number of units that stay, by layer."""
        return {name: len(units) for name, units in self.kept.items()}

    def small_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the plan's tensors without the units that go."""
        removed = self.removed()
        shapes = {name: list(shape) for name, shape in self.structure.shapes.items()}
        for slot in self.structure.slots:
            shapes[slot.tensor][slot.axis] -= len(slot.positions(removed))
        return {name: tuple(shape) for name, shape in shapes.items()}

    def removed(self) -> dict[str, list[int]]:
        """Sorted indices of the units that go, for every layer."""
        gone = {}
        for name, layer in self.structure.layers.items():
            stay = set(self.kept[name])
            gone[name] = [unit for unit in range(layer.units) if unit not in stay]
        return gone

    def stays(self, tensor: str, shape: Sequence[int]) -> tuple[NDArray[np.int64], ...]:
        """Positions that stay along every axis of a tensor of the dense model; `np.ix_` makes an index of them."""
        stay = [np.arange(length) for length in shape]
        removed = self.removed()
        for slot in self.structure.slots:
            if slot.tensor == tensor:
                stay[slot.axis] = np.setdiff1d(stay[slot.axis], slot.positions(removed))
        return tuple(stay)

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
        return replace(self, kept=chosen, method="custom", folds=(), refits=(), folded=False)

    @property
    def corrects(self) -> bool:
        """Whether the plan holds corrections of what stays."""
        return bool(self.folds or self.refits)

    def decisions(self) -> Plan:
        """The plan without the matrices of its corrections, to lie beside weights that contain them."""
        return replace(self, folds=(), refits=(), folded=True) if self.corrects else self

    def cut_only(self) -> Plan:
        """The plan without its corrections, for any weights."""
        return replace(self, folds=(), refits=(), folded=False, fitted_to=None)

    def check_weights(self, found: str | None) -> None:
        """Compare the weights that the plan is about to be applied to with those that it was made from.

        Args:
            found: Digest of the model's weights; None when the plan does not know its own.

        Raises:
            PlanError: When the plan has corrections and they were fitted to other weights, or saved elsewhere.
        """
        if self.folded:
            raise PlanError(
                "The corrections of this plan are in the weights that were saved with it, not in its text: "
                "reprune.load() reads both. To cut without corrections: apply(model, plan, compensate=False)."
            )
        if self.fitted_to in (None, found):
            return
        if self.corrects:
            raise PlanError(
                "The corrections of this plan were fitted to other weights than this model has (fine-tuned, partly "
                "loaded, or of another run). Plan again on this model, or cut without corrections: "
                "apply(model, plan, compensate=False)."
            )
        warn(
            "This plan was made from other weights than this model has, so that it may remove units that matter here. "
            "Plan again on this model, or cut knowingly: apply(model, plan, compensate=False).",
            PlanWarning,
        )

    def to_json(self) -> str:
        """The plan as JSON text: one line per field."""
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        document = _DOCUMENT.dump_python(_Document(FORMAT, VERSION, **held), mode="json", exclude=_OF_FILES)
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
            document = _parse(_DOCUMENT, text)
        except PlanError:
            # The fields of another version would only look like mistakes.
            _check_version(_parse(_HEAD, text))
            raise
        _check_version(document)
        return Plan(**{each.name: getattr(document, each.name) for each in fields(Plan)})


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
    fitted_to: str | None = None
    folded: bool = False
    refits: tuple[Refit, ...] = ()
    # What a saved file says beside the plan; see `core.saving`.
    weights_file: str | None = None
    digest: str | None = None


_OF_FILES = {"weights_file", "digest"}
_HEAD = TypeAdapter(_Head)
_DOCUMENT = TypeAdapter(_Document)


def _parse(adapter: TypeAdapter[T], text: str | bytes) -> T:
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        raise PlanError(f"Not a valid plan: {where}: {first['msg']}. Write plans with Plan.to_json().") from None


def _check_version(head: _Head) -> None:
    if head.format != FORMAT or head.version != VERSION:
        raise PlanError(
            f"Not a plan this version reads: format {head.format!r} version {head.version}, "
            f"expected {FORMAT!r} version {VERSION}."
        )


def _unit(value: Any) -> int:
    # A mask in place of indices would pass for units 0 and 1.
    if isinstance(value, bool):
        raise TypeError(f"{value} is no index")
    return index(value)


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
    if len(units) < min(layer.least, layer.units):
        raise PlanError(
            f"{where} keeps {len(units)} of the {layer.least} units that it must: the model's code drops axes of "
            "length one."
        )
    if wrong := [unit for unit in units if type(unit) is not int or not 0 <= unit < layer.units]:
        raise PlanError(f"{where} holds {wrong[0]!r}: not a unit from 0 to {layer.units - 1}.")
    if list(units) != sorted({*units}):
        raise PlanError(f"{where} must be sorted and without duplicates.")
    if layer.pin is not None and len(units) < layer.units:
        raise PlanError(f"{where} drops units of a layer that must stay whole: {layer.pin}.")


def _check_diagnostics(structure: Structure, diagnostics: Diagnostics) -> None:
    for kind, found in (("scores", diagnostics.scores), ("spectra", diagnostics.spectra)):
        check_known(kind, found, structure.layers)
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


def _check_refits(plan: Plan) -> None:
    if len({refit.tensor for refit in plan.refits}) < len(plan.refits):
        raise PlanError("refits must name every tensor once.")
    shapes = plan.small_shapes() if plan.refits else {}
    for refit in plan.refits:
        refit.array()
        if refit.shape != shapes.get(refit.tensor, refit.shape):
            raise PlanError(f"refit of {refit.tensor!r}: shape {refit.shape} does not fit the units that stay.")


def _among(units: list[int], start: int, end: int) -> int:
    return bisect_left(units, end) - bisect_left(units, start)
