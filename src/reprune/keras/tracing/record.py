"""From a model and an example to its structure: labels resolved into layers, slots and groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from posixpath import commonpath
from typing import Any

import keras
import numpy as np

from reprune.core.errors import UnsupportedModelError
from reprune.core.layers import (
    WIDTHS,
    CarriedState,
    Consumer,
    Contraction,
    Extent,
    Layer,
    Pin,
    Port,
    Scope,
    Site,
    SizeAttribute,
    Slot,
    Structure,
    spans_of,
)
from reprune.core.parts import in_parts
from reprune.keras.tracing.compiled import Runner, few_sequences
from reprune.keras.tracing.graph import ModelGraph, flat_inputs, graph_of
from reprune.keras.tracing.labels import NONE, Ids, extent_of
from reprune.keras.tracing.positional import arguments_of, called_with
from reprune.keras.tracing.rules import rule_of
from reprune.keras.tracing.rules.movement import CUT
from reprune.keras.tracing.tracer import Cell, Traced, Tracer, carried_inputs, paired_states, returned_states
from reprune.keras.tracing.widths import width_layers

Forward = Callable[[Any, Any], Any]
Unit = tuple[str, int]


class Trace:
    """A model's graph, and what flowing labels found in it.

    Attributes:
        graph: The model's graph.
        inputs: The example, as the graph takes it.
        run: The model as a function.
    """

    def __init__(
        self, graph: ModelGraph, inputs: list[Any], tracer: Tracer, uniform: bool, kinds: Collection[str]
    ) -> None:
        self.graph = graph
        self.inputs = inputs
        self.run = Runner(graph)
        self._tracer = tracer
        self._cells = [*_in_parts(tracer, uniform), *width_layers(tracer, kinds)]
        self._uniform = uniform

    def structure(self, pins: Mapping[str, Pin] | None = None) -> Structure:
        """Layers, slots, groups and pins.

        Args:
            pins: Further layers to pin.

        Raises:
            UnsupportedModelError: When there is none of the layers that were to be found.
        """
        return self._resolver().structure(pins or {})

    @property
    def states(self) -> tuple[list[Slot | None], list[Slot | None]]:
        """The axis that knows units, for each of the model's inputs and outputs; None where there is none."""
        resolver = self._resolver()
        returned = {id(state) for state in returned_states(self._tracer)}
        taken = [tensor if tensor.shadow else None for tensor in self._tracer.inputs]
        given = [tensor if id(tensor) in returned else None for tensor in self._tracer.outputs]
        return [resolver.axis(tensor) for tensor in taken], [resolver.axis(tensor) for tensor in given]

    def _resolver(self) -> _Resolver:
        return _Resolver(self._tracer, self._cells, self._uniform)


def record(
    model: Any,
    example: Any,
    forward: Forward | None = None,
    *,
    uniform: bool = False,
    scope: Scope = "recurrent",
    inputs: bool = False,
) -> Trace:
    """Run a model on an example with labels beside every tensor.

    Args:
        model: The model; it is left as it was.
        example: A batch, as the model takes it.
        forward: Replaces `model(batch)`.
        uniform: Keep equal sizes in both directions of every `Bidirectional`.
        scope: `all` takes every width as units (see `widths.py`).
        inputs: Whether the columns of every `Embedding` are units, too.
    """
    example = captured(model, example, forward)
    graph = graph_of(model, example)
    given = few_sequences(graph, flat_inputs(graph.root, example), 2)
    # What layers would write to their variables, states and seeds, is dropped.
    with keras.StatelessScope():
        tracer = Tracer(graph, rule_of, _carried(graph, given))
        tracer.run(given)
    return Trace(graph, given, tracer, uniform, WIDTHS if scope == "all" else ["embedding"] if inputs else [])


def _carried(graph: ModelGraph, inputs: Sequence[Any]) -> list[int]:
    """Inputs that are states, whether the model returns them or not: found out by labelling all of them."""
    vectors = [value for value in inputs if value is not None and len(value.shape) == 2]
    alone = not any(keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype)) for value in vectors)
    if len(inputs) < 2 or (alone and len(graph.root.outputs) < 2):
        return []
    tracer = Tracer(graph, rule_of, range(len(inputs)))
    tracer.run(inputs)
    return carried_inputs(tracer)


def trace(model: Any, example: Any, forward: Forward | None = None) -> Structure:
    """What can be pruned in a model: its layers, who reads them, what ties them, what pins them.

    Args:
        model: The model; it is left as it was.
        example: A batch, as the model takes it.
        forward: Replaces `model(batch)`.
    """
    return record(model, example, forward).structure()


def captured(model: Any, batch: Any, forward: Forward | None) -> Any:
    """What `model` is called with when a batch is given to `forward`."""
    if forward is None:
        return called_with(model, batch)

    def spy(*inputs: Any, **options: Any) -> Any:
        raise _Called(arguments_of(model, *inputs, **options))

    try:
        forward(spy, batch)
    except _Called as called:
        return called.arguments
    raise UnsupportedModelError("forward=… never called the model: write lambda model, batch: model(batch[0]).")


class _Called(BaseException):
    """What `forward` called the model with: known before the model has run, and all that is wanted of it."""

    def __init__(self, arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments


def _directions(names: Collection[str]) -> list[tuple[str, str]]:
    """Pairs of layers that are the two directions of one."""
    pairs = [(name, name.replace(":forward", ":backward")) for name in names if ":forward" in name]
    return [pair for pair in pairs if pair[1] in names]


def _in_parts(tracer: Tracer, uniform: bool) -> list[Cell]:
    """Recurrent layers, in parts where one starts from several others side by side; see `core.parts`."""
    cells = {cell.name: cell for cell in tracer.layers()}
    labels = {name: cell.labels for name, cell in cells.items()}
    found = []
    for name, part in in_parts(labels, tracer.couplings.roots, _directions(cells) if uniform else ()).items():
        cell = cells[part.layer]
        if name != part.layer:
            own = cell.labels[part.start : part.stop]
            tracer.couplings.name(own, name)
            cell = replace(cell, name=name, units=len(own), labels=own, part=(part.layer, part.start))
        found.append(cell)
    return found


class _Resolver:
    """Labels resolved into units of layers."""

    def __init__(self, tracer: Tracer, cells: Sequence[Cell], uniform: bool) -> None:
        self._tracer = tracer
        self._cells = cells
        self._uniform = uniform
        self._records = tracer.records
        self._sizes = {cell.name: cell.units for cell in cells}
        self._classes = tracer.couplings.classes()
        self._groups, self._crossed = _group(self._classes, list(self._sizes))

    def structure(self, pins: Mapping[str, Pin]) -> Structure:
        layers = self._layers(pins)
        if not layers:
            raise UnsupportedModelError(
                "The model has no recurrent layer. Looked for LSTM, GRU, SimpleRNN, RNN, Bidirectional, ConvLSTM and "
                "their cells, also inside nested models and layers; with scope='all' for convolutions, Dense layers "
                "and embeddings, too."
            )
        slots = self._slots()
        weights = self._tracer.graph.weights()
        read = {(slot.tensor, slot.axis) for slot in slots if slot.role == "reads"}
        return Structure(
            layers=layers,
            slots=tuple(slots),
            # All weights, so that a plan fits a model of the same weights whose layers have other names.
            shapes={name: tuple(int(size) for size in weight.shape) for name, weight in weights.items()},
            index_coupled=tuple(self._groups) + tuple((name,) for name in self._tracer.refused if self._alone(name)),
            count_coupled=self._pairs(layers),
            consumers=tuple(Consumer(*key, bias) for key, bias in self._records.consumers.items() if key in read),
            contractions=tuple(
                Contraction(product.rows, tuple(self._extent(axis) for axis in product.axes))
                for product in self._records.products
            ),
            buffers=tuple(name for name, weight in weights.items() if _is_buffer(weight)),
            steps=self._records.steps or 1.0,
            states=self._states(),
            sizes=tuple(
                SizeAttribute(owner, path, extent_of(units, self._sizes))
                for (owner, path), labels in self._records.sizes.items()
                if any(units := self._units(labels))
            ),
        )

    def _alone(self, name: str) -> bool:
        return all(name not in group for group in self._groups)

    def _pairs(self, layers: Mapping[str, Layer]) -> tuple[tuple[str, ...], ...]:
        """Directions that must stay equally large, where that is asked for."""
        if not self._uniform:
            return ()
        coupled = [pair for pair in _directions(layers) if not any(set(pair) <= set(group) for group in self._groups)]
        return tuple(pair for pair in coupled if layers[pair[0]].units == layers[pair[1]].units)

    def _layers(self, given: Mapping[str, Pin]) -> dict[str, Layer]:
        pins = {**self._pins(), **given}
        for group in self._groups:
            first = next((pins[name] for name in group if name in pins), None)
            if first is not None:
                for name in group:
                    pins.setdefault(name, replace(first, reason=f"coupled to {group[0]!r}: {first.reason}"))
        approximate = self._sites(self._records.approximate)
        direct = self._sites(self._records.direct)
        layers = {}
        for cell in self._cells:
            layers[cell.name] = Layer(
                cell.name,
                cell.kind,
                cell.units,
                pins.get(cell.name),
                approximate.get(cell.name),
                cell.name in direct,
                cell.part,
            )
        for name, (kind, units, pin) in self._tracer.refused.items():
            layers[name] = Layer(name, kind, max(units, 1), given.get(name, pin))
        return layers

    def _pins(self) -> dict[str, Pin]:
        pins: dict[str, Pin] = {}
        for name, mates in self._crossed.items():
            others = " and ".join(sorted(mates - {name})) or "its own layer"
            reason = f"its units are coupled to units at other positions of {others}"
            pins[name] = Pin(self._met_at(name), reason)
        for labels, pin in self._records.pins:
            for name in self._names(labels):
                pins.setdefault(name, pin)
        for labels, site in self._records.cuts:
            taken = Counter(name for name, _ in {unit for unit in self._units(labels) if unit is not None})
            pins.update({name: Pin(site, CUT) for name, count in taken.items() if count < self._sizes[name]})
        return pins

    def _met_at(self, name: str) -> Site:
        """The first operation in which units of a layer meet other ones."""
        (own,) = (cell.labels for cell in self._cells if cell.name == name)
        return next((site for labels, site in self._records.ties if np.isin(own, labels).any()), Site("the model", ""))

    def _sites(self, entries: Sequence[tuple[Ids, Site]]) -> dict[str, Site]:
        return {name: site for labels, site in reversed(entries) for name in self._names(labels)}

    def _names(self, labels: Ids) -> set[str]:
        """Layers that have a unit in the class of any of these labels."""
        roots = set(self._tracer.couplings.roots(labels).tolist())
        return {name for root in roots for name, _ in self._classes.get(root, ())}

    def _units(self, labels: Ids, tensor: str = "") -> list[Unit | None]:
        """The unit that each label names; of several that go together, that of the layer to which a tensor belongs."""

        def likeness(unit: Unit) -> int:
            return len(commonpath([unit[0].replace(":", "/"), tensor]))

        roots = self._tracer.couplings.roots(labels)
        units: list[Unit | None] = []
        for label, root in zip(labels.tolist(), roots.tolist(), strict=True):
            own = self._tracer.couplings.member(label)
            members = self._classes.get(root, []) if root != NONE else []
            units.append(own if own is not None else max(members, key=likeness, default=None))
        return units

    def axis(self, tensor: Traced | None) -> Slot | None:
        """The axis of a tensor that knows units."""
        if tensor is None or tensor.shadow is None:
            return None
        units = self._units(tensor.shadow.labels)
        return Slot("", tensor.shadow.axis, len(units), "follows", spans_of(units))

    def _states(self) -> tuple[CarriedState, ...]:
        """The states that the caller carries, by the names of the inputs and the places of the outputs."""
        tracer, root = self._tracer, self._tracer.graph.root
        found = []
        paired = dict(paired_states(tracer))
        for place in tracer.carried:
            name = str(root.inputs[place]._keras_history.operation.name)
            position = paired.get(place)
            back = (position,) if position is not None and len(tracer.outputs) > 1 else ()
            pair = (
                ((name,), tracer.inputs[place]),
                (back, None if position is None else tracer.outputs[position]),
            )
            given, returned = (
                Port(path, slot.axis, slot.size, (slot.spans,)) if slot is not None and slot.spans else None
                for path, slot in ((path, self.axis(tensor)) for path, tensor in pair)
            )
            found.append(CarriedState(given, returned))
        return tuple(state for state in found if state.given is not None)

    def _extent(self, axis: int | Ids) -> Extent:
        return Extent(axis) if isinstance(axis, int) else extent_of(self._units(axis), self._sizes)

    def _slots(self) -> list[Slot]:
        slots = []
        for found in self._records.slots.values():
            units = self._units(found.labels, found.tensor)
            if any(unit is not None for unit in units):
                slots.append(Slot(found.tensor, found.axis, len(units), found.role, spans_of(units)))
        return slots


def _is_buffer(weight: Any) -> bool:
    """Whether training never changes a weight by gradients, frozen or not: a running mean."""
    return bool(weight.name.startswith(("moving_", "count")))


def _group(
    classes: Mapping[int, Sequence[Unit]], names: Sequence[str]
) -> tuple[list[tuple[str, ...]], dict[str, set[str]]]:
    """Groups of layers coupled index by index, and the layers whose coupling is not of that kind, with their mates."""
    mates: dict[str, set[str]] = {name: {name} for name in names}
    crossed: set[str] = set()
    for members in classes.values():
        together = set().union(*(mates[name] for name, _ in members))
        for name in together:
            mates[name] = together
    for members in classes.values():
        own = [name for name, _ in members]
        if len({unit for _, unit in members}) > 1 or len(own) != len(set(own)) or set(own) != mates[own[0]]:
            crossed |= mates[own[0]]
    groups: list[tuple[str, ...]] = []
    for name in names:
        group = (name,) if name in crossed else tuple(other for other in names if other in mates[name])
        if group not in groups:
            groups.append(group)
    return groups, {name: mates[name] for name in names if name in crossed}
