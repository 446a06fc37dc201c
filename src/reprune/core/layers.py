"""Where the units of a model live: layers, the tensor axes that know them, and what ties them together.

This is all that planning and surgery need to know of a model, and it holds no framework object: an adapter's tracer
writes it, everything after reads it, and a `Plan` carries it as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reprune.core.errors import RepruneError

Counts = Mapping[str, int]
Role = Literal["own", "reads", "follows"]
Scope = Literal["recurrent", "all"]
"""What counts as units: those of recurrent layers, or every width of the model."""
SCOPES: tuple[Scope, ...] = ("recurrent", "all")
WIDTHS = {"convolution": "channels", "linear": "features", "embedding": "columns", "attention": "heads"}
"""Kinds of layers without a recurrence, and what their units are called in addresses."""


def checked_scope(scope: str) -> Scope:
    """The scope, if it is one.

    Raises:
        RepruneError: When it is not.
    """
    for known in SCOPES:
        if scope == known:
            return known
    raise RepruneError(f"scope={scope!r} is not one of {', '.join(map(repr, SCOPES))}.")


class Span(NamedTuple):
    """A run of positions on an axis: position `start + i` holds unit `unit + i // each` of `layer`.

    `each > 1` is a flattened axis on which neighbouring positions belong to one unit.
    """

    start: int
    layer: str
    unit: int
    units: int
    each: int = 1


@dataclass(frozen=True)
class Extent:
    """The length of an axis as a function of the units kept: `fixed + sum(times * kept(layer))`."""

    fixed: int
    layers: tuple[tuple[str, int], ...] = ()

    def __call__(self, counts: Counts) -> int:
        """Length of the axis when `counts` units are kept."""
        return self.fixed + sum(times * counts[layer] for layer, times in self.layers)


@dataclass(frozen=True)
class Slot:
    """One axis of one tensor that knows units.

    Attributes:
        tensor: Name of the parameter or buffer, as in the model's state dict.
        axis: The axis.
        size: Length of the axis before pruning.
        role: `own`: the units' own incoming weights and biases. `reads`: a consumer's columns.
            `follows`: per-unit values on the way (an affine gain, a running mean, a learned initial state).
        spans: Which positions belong to which units; positions outside every span belong to none and always stay.
    """

    tensor: str
    axis: int
    size: int
    role: Role
    spans: tuple[Span, ...]

    def positions(self, units: Mapping[str, Sequence[int] | NDArray[np.int64]]) -> NDArray[np.int64]:
        """Sorted positions that hold one of `units` (`{layer: unit indices}`).

        Example:
            >>> slot = Slot("fc.weight", 1, 5, "reads", (Span(1, "lstm:l0", 0, 4),))
            >>> slot.positions({"lstm:l0": [0, 3]}).tolist()
            [1, 4]
        """
        return _positions(self.spans, self.size, units)

    def by_unit(self, layer: str, units: int) -> NDArray[np.int64] | None:
        """Positions of every unit of a layer (units × positions), or None when it does not hold them all alike.

        Example:
            >>> Slot("fc.weight", 1, 5, "reads", (Span(1, "conv:channels", 0, 2, 2),)).by_unit("conv:channels", 2)
            array([[1, 2],
                   [3, 4]])
        """
        owner = np.full(self.size, -1, dtype=np.int64)
        for span in self.spans:
            if span.layer == layer:
                held = np.arange(span.units * span.each)
                owner[span.start + held] = span.unit + held // span.each
        places = np.flatnonzero(owner >= 0)
        counts = np.bincount(owner[places], minlength=units)
        if not counts.min() or (counts != counts[0]).any():
            return None
        return places[np.argsort(owner[places], kind="stable")].reshape(units, -1)

    def extent(self, units: Counts) -> Extent:
        """Length of the axis as a function of the units kept.

        Args:
            units: Units of every layer before pruning. An axis that holds only some units of a layer (which is pinned
                then) counts those as fixed.
        """
        held: dict[str, int] = {}
        for span in self.spans:
            held[span.layer] = held.get(span.layer, 0) + span.units * span.each
        times = {layer: positions // units[layer] for layer, positions in held.items()}
        fixed = self.size - sum(factor * units[layer] for layer, factor in times.items())
        return Extent(fixed, tuple((layer, factor) for layer, factor in times.items() if factor))


def _positions(
    spans: Iterable[Span], size: int, units: Mapping[str, Sequence[int] | NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Sorted positions, on an axis of this size, that hold one of `units`."""
    marked = np.zeros(size, dtype=bool)
    for span in spans:
        chosen = np.asarray(units.get(span.layer, ()), dtype=np.int64) - span.unit
        chosen = chosen[(chosen >= 0) & (chosen < span.units)]
        marked[(span.start + chosen[:, None] * span.each + np.arange(span.each)).ravel()] = True
    return np.flatnonzero(marked)


@dataclass(frozen=True)
class Site:
    """A place in somebody's code: the operation, and `file:line` where the user's code called it."""

    operation: str
    location: str

    def __str__(self) -> str:
        return f"{self.operation} at {self.location}" if self.location else self.operation


@dataclass(frozen=True)
class Pin:
    """Why a layer is left alone."""

    site: Site
    reason: str

    def __str__(self) -> str:
        return f"{self.reason} ({self.site})"


@dataclass(frozen=True)
class Layer:
    """One direction of one recurrent layer (or its projection), or the width of a weight without a recurrence.

    Attributes:
        name: Its address, such as `encoder.lstm:l0_reverse`, or `stem.conv:channels` of a convolution.
        cell: Kind of cell, such as `lstm`, `gru` or `rnn`, or of weight (see `WIDTHS`).
        units: Number of hidden units, channels, features, columns or heads.
        pin: Why it is left alone, or None when it can be pruned.
        approximate: Why removing units changes more than what they carried (a `LayerNorm` over them), or None.
        direct: Whether units are also read without a weight (summed over, or multiplied with each other). Zero
            columns cannot silence such units: masking zeroes their own weights as well.
        part: Of a part of a layer, whose units are those of several others side by side (`decoder:l0:0-7`): the name of
            the whole layer, and its unit that is the part's first one.
        least: Units that it must keep: two where the model's code drops axes of length one (`h.squeeze()`).
    """

    name: str
    cell: str
    units: int
    pin: Pin | None = None
    approximate: Site | None = None
    direct: bool = False
    part: tuple[str, int] | None = None
    least: int = 1

    @property
    def whole(self) -> str:
        """The name of the layer that this is a part of; its own if it is whole."""
        return self.part[0] if self.part is not None else self.name


@dataclass(frozen=True)
class Contraction:
    """A matrix product: `rows` vectors through a matrix whose axes have the given extents."""

    rows: float
    extents: tuple[Extent, ...]


@dataclass(frozen=True)
class Consumer:
    """A weight that reads units.

    Attributes:
        tensor: Name of the weight.
        axis: The axis that is contracted with the units.
        bias: Name of the bias added to the product, or None.
    """

    tensor: str
    axis: int
    bias: str | None = None


@dataclass(frozen=True)
class SizeAttribute:
    """A number on a module that the model's own code uses as a size: `value = extent * times // divisor`."""

    owner: str
    path: tuple[str | int, ...]
    extent: Extent
    times: int = 1
    divisor: int = 1


@dataclass(frozen=True)
class Port:
    """A tensor in which hidden units enter or leave the model, or rest in it between two calls.

    Attributes:
        path: Where it is. Of what `forward` takes: the argument's name, then indices, keys or fields
            (`("state", 0)`); of what another method takes, or a part of the model, the method as well
            (`("act(state)", 0)`, `("decoder.forward(state)", 0)`). Of what comes back: indices, keys or fields, none
            for a lone tensor. Of what a module keeps: the module's path, the attribute's name, then as above.
        axis: The axis whose positions are units.
        size: Its length before pruning.
        pieces: Which positions belong to which units; one entry for all of the tensor, or one for every index of
            `along`.
        along: The axis on which states of several layers are stacked, or None.
    """

    path: tuple[str | int, ...]
    axis: int
    size: int
    pieces: tuple[tuple[Span, ...], ...]
    along: int | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose units it holds."""
        return tuple(dict.fromkeys(span.layer for spans in self.pieces for span in spans))

    def stay(self, removed: Mapping[str, Sequence[int]]) -> list[NDArray[np.int64]]:
        """For every piece, the positions that are left without the units `removed` (`{layer: unit indices}`).

        Example:
            >>> port = Port(("state",), 1, 5, ((Span(1, "lstm:l0", 0, 4),),))
            >>> [positions.tolist() for positions in port.stay({"lstm:l0": [1, 2]})]
            [[0, 1, 4]]
        """
        everything = np.arange(self.size)
        return [np.setdiff1d(everything, _positions(spans, self.size, removed)) for spans in self.pieces]

    def __str__(self) -> str:
        return ".".join(map(str, self.path))


@dataclass(frozen=True)
class CarriedState:
    """A state of the model's interface: the tensor that `forward` takes, the one that it returns for it, or both.

    Attributes:
        given: Where it comes in, None where a packed state comes back in more tensors than it was given in.
        returned: Where it comes back, None where it does not.
    """

    given: Port | None
    returned: Port | None


@dataclass(frozen=True)
class Structure:
    """What a trace found.

    Attributes:
        layers: By name, in the order in which the model runs them.
        slots: Every tensor axis that knows units.
        shapes: Shape of every tensor named by a slot.
        index_coupled: Groups of layers whose units go together, index by index. Every layer is in exactly one.
        count_coupled: Sets of layers that must keep equal numbers of units.
        consumers: The weights that read units, with their biases.
        contractions: Matrix products of one traced example.
        steps: Time steps of that example, summed over its sequences: the unit in which MACs are counted.
        other_parameters: Number of parameters in tensors that no slot names.
        sizes: Attributes that the model's own code uses as sizes.
        outside_states: Layers that are given initial states which the trace cannot size (from the caller, or zeros
            of a written-out size): they keep accepting states of the original width.
        buffers: Tensors in `shapes` that are no parameters, such as a running mean.
        states: States that the caller hands in and gets back.
        kept_states: States that modules keep from one call to the next.
        written: Buffers that the model itself writes while it answers, in evaluation mode. They are no part of what a
            plan was fitted to.
    """

    layers: Mapping[str, Layer]
    slots: tuple[Slot, ...]
    shapes: Mapping[str, tuple[int, ...]]
    index_coupled: tuple[tuple[str, ...], ...]
    count_coupled: tuple[tuple[str, ...], ...] = ()
    consumers: tuple[Consumer, ...] = ()
    contractions: tuple[Contraction, ...] = ()
    steps: float = 1.0
    other_parameters: int = 0
    sizes: tuple[SizeAttribute, ...] = ()
    outside_states: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    states: tuple[CarriedState, ...] = ()
    kept_states: tuple[Port, ...] = ()
    written: tuple[str, ...] = ()

    @cached_property
    def _by_layer(self) -> dict[str, list[Slot]]:
        index: dict[str, list[Slot]] = {}
        for slot in self.slots:
            for layer in dict.fromkeys(span.layer for span in slot.spans):
                index.setdefault(layer, []).append(slot)
        return index

    def slots_of(self, layer: str, *roles: Role) -> Iterable[Slot]:
        """Slots that know units of `layer`, those with one of `roles` (all roles when none is given)."""
        return (slot for slot in self._by_layer.get(layer, ()) if not roles or slot.role in roles)

    @property
    def prunable(self) -> tuple[str, ...]:
        """Names of the layers that can be pruned."""
        return tuple(name for name, layer in self.layers.items() if layer.pin is None)

    def counts(self) -> dict[str, int]:
        """Units of every layer before pruning."""
        return {name: layer.units for name, layer in self.layers.items()}


def least_of(structure: Structure, names: Iterable[str]) -> int:
    """Units that layers which lose theirs together must each keep."""
    return max(structure.layers[name].least for name in names)


def spans_of(places: Sequence[tuple[str, int] | None]) -> tuple[Span, ...]:
    """The spans of an axis whose positions hold these units, as `(layer, unit)`: runs that count up.

    Example:
        >>> spans_of([None, ("lstm", 0), ("lstm", 0), ("lstm", 1), ("lstm", 1)])
        (Span(start=1, layer='lstm', unit=0, units=2, each=2),)
    """
    spans: list[Span] = []
    start = 0
    while start < len(places):
        here = places[start]
        if here is None:
            start += 1
            continue
        each = 1
        while start + each < len(places) and places[start + each] == here:
            each += 1
        units = 1
        while list(places[start + units * each : start + (units + 1) * each]) == [(here[0], here[1] + units)] * each:
            units += 1
        spans.append(Span(start, here[0], here[1], units, each))
        start += units * each
    return tuple(spans)
