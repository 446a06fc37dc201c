"""What a traced pass leaves behind: layers, axes of parameters with their labels, couplings, pins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from reprune.core.layers import Role, Site
from reprune.torch.tracing.labels import Couplings, Ids
from reprune.torch.tracing.leaves import Path
from reprune.torch.tracing.provenance import Provenance
from reprune.torch.tracing.sizes.sizes import Expression, SizeUse

Axis = tuple[str, int]


@dataclass
class Product:
    """One matrix product: number of rows, and the label lines of the two axes of its matrix."""

    rows: int
    axes: tuple[Ids, ...]


@dataclass
class RecurrentLayer:
    """One direction of one layer that a recurrent kernel ran, or a width (`widths.py`)."""

    name: str
    cell: str
    module: str
    labels: Ids
    part: tuple[str, int] | None = None
    """Of a part of a layer: the layer, and its unit that is the part's first one."""

    @property
    def emitted(self) -> Ids:
        """Labels of what it emits; a single unit cannot be removed, and its value travels like any other number."""
        return self.labels if len(self.labels) > 1 else np.zeros(1, dtype=np.int64)


class State(NamedTuple):
    """A final state that a kernel returned: its layers, and its number of axes when they are stacked."""

    layers: list[str]
    ndim: int


class Summary(NamedTuple):
    """A value computed over all units of some layers (`rules/summaries.py`).

    Attributes:
        units: Labels of the units.
        operation: The operation that computed it, at `site`.
        site: Where that was.
        moment: Whether it is a mean or deviation so far, from which a normalisation may be made.
        scale: Whether units may be multiplied by it in a normalisation: a root was taken, or a reciprocal.
    """

    units: Ids
    operation: str
    site: Site
    moment: bool
    scale: bool

    @property
    def reason(self) -> str:
        """Why its units stay when it is used as a value."""
        return f"'{self.operation}' runs over its units, and the result is used: with fewer units it is another one"


class Loss(NamedTuple):
    """Where values were made of units that cannot be told in them, and why (`rules/losses.py`)."""

    site: Site
    reason: str


class Labelled(NamedTuple):
    """A tensor of the model's interface, or one that a module keeps: where it is, and labels of its elements."""

    path: Path
    labels: torch.Tensor


@dataclass
class Recording:
    """What one traced pass left behind."""

    couplings: Couplings = field(default_factory=Couplings)
    layers: dict[str, RecurrentLayer] = field(default_factory=dict)
    axes: dict[Axis, Ids] = field(default_factory=dict)
    roles: dict[Axis, set[Role]] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    biases: dict[Axis, str | None] = field(default_factory=dict)
    unbiased: dict[int, tuple[torch.Tensor, list[Axis]]] = field(default_factory=dict)
    added: dict[tuple[Axis, str], int] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    pins: list[tuple[Ids, Site, str]] = field(default_factory=list)
    approximate: list[tuple[Ids, Site]] = field(default_factory=list)
    positions: list[Ids] = field(default_factory=list)
    seams: set[tuple[int, int]] = field(default_factory=set)
    lone: list[Ids] = field(default_factory=list)
    direct: list[Ids] = field(default_factory=list)
    count_coupled: list[list[str]] = field(default_factory=list)
    aligned: list[Ids] = field(default_factory=list)
    views: list[tuple[Ids, Site]] = field(default_factory=list)
    sizes: list[SizeUse] = field(default_factory=list)
    steady: list[tuple[Expression, Expression]] = field(default_factory=list)
    values: list[tuple[Expression, Site]] = field(default_factory=list)
    level: list[tuple[Expression, Expression]] = field(default_factory=list)
    bonds: dict[frozenset[str], Site] = field(default_factory=dict)
    suspects: list[tuple[Ids, Site]] = field(default_factory=list)
    losses: list[tuple[Ids, Site, Loss]] = field(default_factory=list)
    couplers: list[tuple[Ids, Ids, Site]] = field(default_factory=list)
    outside_states: set[str] = field(default_factory=set)
    steps: dict[str, int] = field(default_factory=dict)
    states: list[tuple[Labelled | None, Labelled | None]] = field(default_factory=list)
    kept_states: list[Labelled] = field(default_factory=list)
    written: tuple[str, ...] = ()
    maps: list[tuple[Axis, Axis]] = field(default_factory=list)
    provenance: Provenance = field(default_factory=Provenance)
    before_feedback: Ids | None = None

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """In this context, another pass is traced that does not count in what a call costs, nor for what it returns."""
        counts, added = [dict(held) for held in (self.uses, self.rows, self.steps)], dict(self.added)
        products = list(self.products)
        try:
            yield
        finally:
            self.uses, self.rows, self.steps = counts
            self.added = added
            self.products = products

    def takes_bias(self, axis: Axis, name: str | None) -> None:
        """A weight reads along this axis, and this bias is added: it takes up what is folded if it always is."""
        if name is not None:
            self.added[axis, name] = self.added.get((axis, name), 0) + 1
        if self.biases.setdefault(axis, name) != name:
            self.biases[axis] = None

    def keep_equal(self, names: Iterable[str], site: Site) -> None:
        """Layers must keep equal numbers of units, because of what is done at this site."""
        self.count_coupled.append(list(names))
        self.bonds.setdefault(frozenset(names), site)

    def begin_feedback(self) -> None:
        """The model is about to run again, on the states that it returned: what is counted per call starts anew."""
        self.before_feedback = self.couplings.roots(self.couplings.all())
        for counts in (self.uses, self.rows, self.steps):
            counts.clear()
        self.added.clear()
        self.products.clear()


def tensors_in(value: Any) -> Iterable[torch.Tensor]:
    """All tensors in nested containers, dataclasses and packed sequences."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, name))
