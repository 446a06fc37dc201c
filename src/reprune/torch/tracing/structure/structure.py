"""From what a trace recorded to a `Structure`: classes of labels become layers, slots, groups and costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from math import prod

import numpy as np
import torch

from reprune.core.layers import (
    CarriedState,
    Consumer,
    Contraction,
    Extent,
    Layer,
    Pin,
    Port,
    Role,
    Site,
    SizeAttribute,
    Slot,
    Structure,
    spans_of,
)
from reprune.core.parts import in_parts, parts_of
from reprune.torch.tracing.blame import coupled_at
from reprune.torch.tracing.labels import NONE, Ids
from reprune.torch.tracing.recording import Labelled, Recording, RecurrentLayer
from reprune.torch.tracing.sizes.attributes import Sizes, extent
from reprune.torch.tracing.sizes.sizes import Attribute
from reprune.torch.tracing.structure.interleaved import couple_interleaved
from reprune.torch.tracing.structure.ports import port
from reprune.torch.tracing.structure.sized import couple_sized
from reprune.torch.tracing.structure.unused import couple_unused
from reprune.torch.tracing.structure.widths import Widths
from reprune.torch.tracing.structure.written import written_cells


class Builder:
    """Turns one recording into a structure."""

    def __init__(self, recording: Recording, widths: Widths, tensors: dict[str, torch.Tensor], parameters: int) -> None:
        self.recording = recording
        self._everywhere = widths.everywhere
        widths.settle(recording.couplings)
        # Their shapes and kinds only: the values would keep the traced copy of the model alive.
        self._tensors = {name: _shape_of(tensor) for name, tensor in tensors.items()}
        self._parameters = parameters
        self._couplings = recording.couplings
        self.assumed: list[SizeAttribute] = []
        self._pins: dict[str, Pin] = {}
        # Pinned layers still name the classes they hold, so that what is coupled with them is pinned too.
        self._layers = dict(recording.layers)
        positions = {root for labels in recording.positions for root in self._couplings.roots(labels).tolist()}
        self._layers.update(written_cells(recording, self._known() | positions, self._is_recurrent))
        couple_interleaved(recording, self._layers)
        couple_unused(recording, self._layers)
        if not widths.everywhere:
            couple_sized(recording, self._layers)
        self._layers = self._in_parts()
        self._recurrent = len(self._layers)
        self._layers.update(widths.resolved(self._couplings, self._known()))
        self._roots = {name: self._couplings.roots(layer.labels) for name, layer in self._layers.items()}
        self._unit_of: dict[int, tuple[str, int]] = {}
        for name, roots in self._roots.items():
            for unit, root in enumerate(roots.tolist()):
                self._unit_of.setdefault(root, (name, unit))

    @property
    def has_layers(self) -> bool:
        """Whether anything was found that the trace was to look for: a recurrent layer, or any width."""
        return self._recurrent > 0 or (self._everywhere and bool(self._layers))

    def structure(self, extra_pins: dict[str, Pin] | None = None) -> Structure:
        """The structure; `extra_pins` are layers pinned for reasons found after the trace."""
        self._pin_sites()
        groups = self._groups()
        solver = Sizes(self._places, {name: len(layer.labels) for name, layer in self._layers.items()})
        sizes, bonds = solver.solve(self.recording.sizes, self.assumed, self.recording.steady, self.recording.level)
        self._pins.update(extra_pins or {})
        states = tuple(CarriedState(*map(self._port, pair)) for pair in self.recording.states)
        kept_states = tuple(found for found in map(self._port, self.recording.kept_states) if found is not None)
        ports = [port for state in states for port in (state.given, state.returned)] + list(kept_states)
        bonds += [port.layers for port in ports if port is not None and port.along is not None]
        bonds = [*self._count_coupled(), *(bond for bond in bonds if len(bond) > 1)]
        count_coupled = self._equal_bonds(bonds, solver.shared)
        slots = tuple(self._slots())
        shapes = {slot.tensor: tuple(self._tensors[slot.tensor].shape) for slot in slots}
        named = sum(prod(shape) for name, shape in shapes.items() if self._is_parameter(name))
        approximate = self._sites(self.recording.approximate)
        lone = {name for ids in self.recording.lone for name in self.layers_of(ids)}
        direct = {name for ids in self.recording.direct for name in self.layers_of(ids)}
        layers = {
            name: Layer(
                name,
                layer.cell,
                len(layer.labels),
                self._pins.get(name),
                approximate.get(name),
                name in direct,
                part=layer.part,
                least=1 + (name in lone),
            )
            for name, layer in self._layers.items()
        }
        self._spread_pins(layers, [*groups, *count_coupled])
        buffers = tuple(name for name in shapes if not self._is_parameter(name))
        return Structure(
            layers=layers,
            slots=slots,
            shapes=shapes,
            index_coupled=groups,
            count_coupled=count_coupled,
            consumers=tuple(self._consumers(shapes)),
            contractions=tuple(self._contractions()),
            steps=float(max(self.recording.steps.values(), default=1)),
            other_parameters=self._parameters - named,
            buffers=buffers,
            sizes=sizes,
            outside_states=tuple(
                name
                for name, layer in layers.items()
                if (layer.part[0] if layer.part else name) in self.recording.outside_states
            ),
            states=states,
            kept_states=kept_states,
            written=self.recording.written,
        )

    def _in_parts(self) -> dict[str, RecurrentLayer]:
        """The layers, in parts where one has the units of several others side by side."""
        labels = {name: layer.labels for name, layer in self._layers.items()}
        parts = in_parts(labels, self._couplings.roots, self.recording.count_coupled, self.recording.seams)
        found = {}
        for name, (whole, start, stop) in parts.items():
            layer = self._layers[whole]
            if name != whole:
                layer = replace(layer, name=name, labels=layer.labels[start:stop], part=(whole, start))
            found[name] = layer
        return found

    def recurrent_layers_of(self, labels: Ids) -> list[str]:
        """Names of the recurrent layers among them."""
        recurrent = set(list(self._layers)[: self._recurrent])
        return [name for name in self.layers_of(labels) if name in recurrent]

    def layers_of(self, labels: Ids) -> list[str]:
        """Names of the layers that hold any of these classes."""
        roots = set(self._couplings.roots(labels).tolist()) - {NONE}
        return [name for name, held in self._roots.items() if roots & set(held.tolist())]

    def part_of(self, name: str, labels: Ids) -> int:
        """How many units of a layer are among the labels, if some but not all are; else 0."""
        among = np.isin(self._roots[name], self._couplings.roots(labels))
        return 0 if among.all() else int(among.sum())

    def _port(self, state: Labelled | None) -> Port | None:
        """Where units enter or leave in this tensor."""

        def classes(labels: Ids) -> Ids:
            roots = self._couplings.roots(labels)
            return np.where(np.isin(roots, list(self._unit_of)), roots, NONE)

        return None if state is None else port(state, classes, lambda line: spans_of(self._places(line)))

    def _is_parameter(self, name: str) -> bool:
        return isinstance(self._tensors[name], torch.nn.Parameter)

    # -- layers and groups -------------------------------------------------------------------------------------------

    def _is_recurrent(self, name: str, labels: Ids) -> bool:
        """Whether a weight goes round, and something new joins on the way, within a call or from one to the next."""
        provenance = self.recording.provenance
        return name in provenance.recurrent & provenance.driven or self._fed_back(name, labels)

    def _fed_back(self, name: str, labels: Ids) -> bool:
        """Whether a weight reads what it made in the call before, and nothing of what it makes within a call.

        So the state of a single step differs from a residual block.
        """
        before = self.recording.before_feedback
        if before is None:
            return False
        now = self._couplings.roots(self._couplings.all())
        lines = {axis: line for axis, line in self.recording.axes.items() if axis[0] in self._tensors}
        maps = [pair for pair in dict.fromkeys(self.recording.maps) if pair[0] in lines and pair[1] in lines]

        def meet(roots: Ids) -> bool:
            """Whether the weight reads what is made of its outputs, by itself or through others."""
            classes = {axis: set(roots[line[line < len(roots)]].tolist()) - {NONE} for axis, line in lines.items()}
            made = [held for axis, held in classes.items() if axis[0] == name and "own" in self.recording.roles[axis]]
            reached = set[int]().union(*made)
            while more := {root for one, two in maps if classes[one] & reached for root in classes[two] - reached}:
                reached |= more
            return bool((set(roots[labels[labels < len(roots)]].tolist()) - {NONE}) & reached)

        return meet(now) and not meet(before)

    def _known(self) -> set[int]:
        """Classes that are units of the layers found so far."""
        return {root for layer in self._layers.values() for root in self._couplings.roots(layer.labels).tolist()}

    def _count_coupled(self) -> list[tuple[str, ...]]:
        """Layers that the trace saw in step, but for widths that are no layers of their own."""
        wholes = {name: layer.part[0] if layer.part else name for name, layer in self._layers.items()}
        bonds = [bond for names in self.recording.count_coupled for bond in parts_of(wholes, names)]
        # Lines side by side whose layers were not known yet: of cells written by hand.
        for found in self.recording.aligned:
            held = [tuple(self.recurrent_layers_of(line)) for line in found]
            if all(held) and len(set(held)) > 1:
                bonds.append(tuple(dict.fromkeys(chain(*held))))
        return [bond for bond in bonds if len(bond) > 1]

    def _groups(self) -> tuple[tuple[str, ...], ...]:
        """Index-coupled groups; layers whose classes are shared out of order are pinned."""
        groups: dict[str, list[str]] = {}
        for name, roots in self._roots.items():
            if len(set(roots.tolist())) < len(roots):
                self._pin(name, self._coupled_at(name), "its own units are coupled with each other")
            partners = list(dict.fromkeys(self._unit_of[root][0] for root in roots.tolist()))
            first = partners[0]
            if len(partners) > 1 or not np.array_equal(self._roots[first], roots):
                others = [self._unit_of[root][0] for root in roots.tolist()]
                reason = (
                    f"its units are coupled with those of several layers ({', '.join(partners)})"
                    if len(partners) > 1
                    else f"its units are coupled with those of {others[0]} in a different order"
                )
                for other in (name, *partners):
                    self._pin(other, self._coupled_at(other), reason)
                groups[name] = [name]
            else:
                groups.setdefault(first, []).append(name)
        return tuple(tuple(group) for group in groups.values())

    def _pin(self, name: str, site: Site, reason: str) -> None:
        self._pins.setdefault(name, Pin(site, reason))

    def _equal_bonds(
        self, bonds: Iterable[tuple[str, ...]], shared: Mapping[frozenset[str], Attribute]
    ) -> tuple[tuple[str, ...], ...]:
        """Layers that must keep equal numbers of units; those that must although they differ are pinned.

        Args:
            bonds: The layers of each.
            shared: The attribute that is the size of each of these layers.
        """
        kept = []
        for bond in {frozenset(bond): bond for bond in bonds}.values():
            if len({len(self._layers[name].labels) for name in bond}) == 1:
                kept.append(bond)
                continue
            site = self.recording.bonds.get(frozenset(bond))
            reason = f"must stay in step with layers of other sizes ({', '.join(bond)})"
            attribute = shared.get(frozenset(bond))
            if attribute is not None:
                site = Site(f"the attribute {attribute}", "")
                reason += ", which are taken from one attribute: give each an attribute of its own"
            for name in bond:
                self._pin(name, site or self._coupled_at(name), reason)
        return tuple(kept)

    def _coupled_at(self, name: str) -> Site:
        """Where this layer's units were coupled with others."""
        return coupled_at(self.recording, self._layers, name)

    def _pin_sites(self) -> None:
        for labels, site, reason in self.recording.pins:
            for name in self.layers_of(labels):
                self._pin(name, site, reason)

    def _sites(self, found: Iterable[tuple[Ids, Site]]) -> dict[str, Site]:
        return {name: site for labels, site in found for name in self.layers_of(labels)}

    def _spread_pins(self, layers: dict[str, Layer], bonds: Sequence[Sequence[str]]) -> None:
        """A layer coupled with a pinned one is pinned for the same reason."""
        while True:
            spread = {
                name: layers[held].pin
                for bond in bonds
                for held in [next((n for n in bond if layers[n].pin is not None), None)]
                if held is not None
                for name in bond
                if layers[name].pin is None
            }
            if not spread:
                return
            for name, pin in spread.items():
                assert pin is not None
                layers[name] = replace(
                    layers[name], pin=Pin(pin.site, f"coupled with a layer that stays: {pin.reason}")
                )

    # -- slots -------------------------------------------------------------------------------------------------------

    def _slots(self) -> Iterable[Slot]:
        for (name, axis), labels in self.recording.axes.items():
            if name not in self._tensors:
                continue  # A weight that is computed from others, which have slots of their own.
            spans = spans_of(self._places(labels))
            if spans:
                roles = self.recording.roles[name, axis]
                role: Role = "reads" if "reads" in roles else "own" if "own" in roles else "follows"
                yield Slot(name, axis, len(labels), role, spans)

    def _places(self, labels: Ids) -> list[tuple[str, int] | None]:
        """Layer and unit of each label: its own layer where it names one, else the first layer of its class."""
        own: dict[int, tuple[str, int]] = {}
        for name, layer in self._layers.items():
            own.update({label: (name, unit) for unit, label in enumerate(layer.labels.tolist())})
        roots = self._couplings.roots(labels)
        return [
            own.get(label) or self._unit_of.get(root) if root != NONE else None
            for label, root in zip(labels.tolist(), roots.tolist(), strict=True)
        ]

    def extent(self, labels: Ids) -> Extent:
        """Length of an axis with these labels, as a function of the units kept."""
        return extent(self._places(labels), {name: len(layer.labels) for name, layer in self._layers.items()})

    # -- consumers, costs -------------------------------------------------------------------------------------

    def _consumers(self, shapes: dict[str, tuple[int, ...]]) -> Iterable[Consumer]:
        for (name, axis), bias in self.recording.biases.items():
            if name in shapes and any(place is not None for place in self._places(self.recording.axes[name, axis])):
                yield Consumer(name, axis, bias)

    def _contractions(self) -> Iterable[Contraction]:
        merged: Counter[tuple[Extent, ...]] = Counter()
        known: dict[bytes, Extent] = {}
        for product in self.recording.products:
            extents = []
            for axis in product.axes:
                key = axis.tobytes()
                if key not in known:
                    known[key] = self.extent(axis)
                extents.append(known[key])
            merged[tuple(extents)] += product.rows
        return (Contraction(float(rows), extents) for extents, rows in merged.items())


def _shape_of(tensor: torch.Tensor) -> torch.Tensor:
    empty = tensor.detach().to("meta")
    return torch.nn.Parameter(empty, False) if isinstance(tensor, torch.nn.Parameter) else empty
