"""What a trace gathers while labels flow through a model: slots, couplings, pins, matrix products."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from reprune.core.layers import WIDTHS, Pin, Role, Site
from reprune.keras.tracing.compiled import compiled_call
from reprune.keras.tracing.graph import ModelGraph, named_weights, run
from reprune.keras.tracing.labels import NONE, Couplings, Ids, Shadow
from reprune.keras.tracing.location import line_of


@dataclass(eq=False)
class Traced:
    """A tensor of the traced example with the labels of its positions.

    Attributes:
        value: The tensor.
        shadow: Its labels.
        weight: Where it is a weight of a layer whose code is followed: the variable.
        axes: Of such a weight the axis of the variable that lies along each of its own, None where there is none.
    """

    value: Any
    shadow: Shadow | None = None
    weight: Any = None
    axes: tuple[int | None, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.value.shape)

    def along(self, axis: int) -> Ids:
        """Labels along an axis; zeros where the tensor is labelled along another one or not at all."""
        axis %= len(self.shape)
        if self.shadow is not None and self.shadow.axis == axis:
            return self.shadow.labels
        return np.zeros(self.shape[axis], dtype=np.int64)


@dataclass
class Found:
    """One axis of a weight, as the trace met it."""

    tensor: str
    axis: int
    role: Role
    labels: Ids
    site: Site


@dataclass
class Product:
    """A matrix product: `rows` vectors through axes of fixed length or with labelled positions."""

    rows: float
    axes: tuple[int | Ids, ...]


@dataclass
class Cell:
    """A recurrent cell or a direction of a recurrent layer, whose units can be named, or a width."""

    name: str
    kind: str
    units: int
    labels: Ids
    zero_at_zero: bool = True
    part: tuple[str, int] | None = None
    """Of a part of a layer: the layer, and its unit that is the part's first one."""


@dataclass
class Records:
    """Everything gathered."""

    slots: dict[tuple[str, int], Found] = field(default_factory=dict)
    pins: list[tuple[Ids, Pin]] = field(default_factory=list)
    ties: list[tuple[Ids, Site]] = field(default_factory=list)
    direct: list[tuple[Ids, Site]] = field(default_factory=list)
    approximate: list[tuple[Ids, Site]] = field(default_factory=list)
    cuts: list[tuple[Ids, Site]] = field(default_factory=list)
    consumers: dict[tuple[str, int], str | None] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    products: list[Product] = field(default_factory=list)
    sizes: dict[tuple[str, tuple[str | int, ...]], Ids] = field(default_factory=dict)
    steps: float = 0.0


class Tracer:
    """Runs a model's graph on an example, with labels beside every tensor.

    Args:
        graph: The graph.
        rule_of: What to do with an operation.
        carried: Which inputs are labelled, too, along their last axis: states that the caller carries.

    Attributes:
        widths: What weights without a recurrence make, by address, whether it counts as units or not.
        inputs: What the model was run on.
        outputs: What it returned.
    """

    def __init__(
        self,
        graph: ModelGraph,
        rule_of: Callable[[Any], Callable[[Call], Any]],
        carried: Collection[int] = (),
    ) -> None:
        self.graph = graph
        self.carried = carried
        self.inputs: list[Traced] = []
        self.outputs: list[Traced] = []
        self._rule_of = rule_of
        self.couplings = Couplings()
        self.records = Records()
        self.cells: dict[tuple[int, int], Cell] = {}
        """By the id of a cell, and which of its states has these units."""
        self.refused: dict[str, tuple[str, int, Pin]] = {}
        self._names: dict[int, str] = {}
        self.widths: dict[str, Cell] = {}
        self._made: dict[tuple[int, int], Ids] = {}
        self.uncounted: set[int] = set()
        """Ids of weights whose products are counted where they happen."""
        self.times = 0.0
        """While the code of one step is followed: how many steps there are."""
        self.written: list[Any] = []
        """Graphs of layers with weights of their own: operations are known by their identity."""
        for path, layer in graph.layers():
            for name, variable in named_weights(layer, path):
                self._names.setdefault(id(variable), name)

    def run(self, inputs: Sequence[Any]) -> None:
        """Trace the root graph on example tensors; what reaches the outputs is pinned, but for carried states."""
        self.inputs = [self._input(place, value) for place, value in enumerate(inputs)]
        self.outputs = keras.tree.flatten(run(self.graph.root, self.inputs, self.call))
        returned = returned_states(self)
        for name, output in zip(self.graph.root.output_names, self.outputs, strict=False):
            if not any(output is state for state in returned):
                self.pin(output, Site(f"output {name!r}", ""), "its units are an output of the model")

    def _input(self, place: int, value: Any) -> Traced:
        if place not in self.carried or value is None or len(value.shape) < 2:
            return Traced(value)
        axis = len(value.shape) - 1
        labels = self.couplings.new(int(value.shape[axis]))
        entry = self.graph.root.inputs[place]._keras_history.operation
        self.records.sizes[self.graph.paths[id(entry)], ("batch_shape", axis)] = labels
        return Traced(value, Shadow(axis, labels))

    def call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        """Run one operation on traced arguments."""
        if id(operation) in self.graph.inner:
            tensors = [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, Traced)]
            self._enter(Call(self, operation, args, kwargs))
            return run(self.graph.inner[id(operation)], tensors, self.call)
        call = Call(self, operation, args, kwargs)
        for mask in keras.tree.flatten(kwargs.get("mask")):
            if isinstance(mask, Traced):
                self.pin(mask, call.site, "a mask holds its units")
        return self._rule_of(operation)(call)

    def _enter(self, call: Call) -> None:
        """Note which sizes in the inputs that an inner graph was declared with count units."""
        for index, tensor in enumerate(call.tensors):
            if tensor.shadow is not None:
                self.size(call, ("inputs", index, tensor.shadow.axis), tensor.shadow.labels)

    def size(self, call: Call, path: tuple[str | int, ...], labels: Ids, owner: str = "") -> None:
        """Record that a number which the operation, or its part `owner`, was made with counts labels."""
        known = self.records.sizes.setdefault((owner or call.path, path), labels)
        if known is not labels:
            self.tie(known, labels, call.site, "a size that is used at several places counts units in only one")

    def layers(self) -> list[Cell]:
        """The cells that are layers; one inside a cell of the user's own has that one's units."""
        named = self.couplings.member
        return [cell for cell in self.cells.values() if cell.units < 2 or named(int(cell.labels[0]))]

    def take_state(self, labels: Ids) -> None:
        """Note the labelled inputs of the model that a layer is about to take for its state."""
        taken = set(self.couplings.roots(labels).tolist()) - {NONE}
        for place, tensor in enumerate(self.inputs):
            if tensor.shadow is not None and taken.intersection(self.couplings.roots(tensor.shadow.labels).tolist()):
                self.records.taken.add(place)

    def names_units(self, labels: Ids) -> bool:
        """Whether any label is a unit, or is coupled to one by now."""
        classes = self.couplings.classes()
        return any(root in classes for root in self.couplings.roots(labels).tolist())

    def name(self, variable: Any) -> str:
        """Name of a weight."""
        return self._names[id(variable)]

    def knows(self, variable: Any) -> bool:
        """Whether a variable is a weight of the model that is traced."""
        return id(variable) in self._names

    def begin(self, call: Call, kind: str, variable: Any, axis: int) -> Ids:
        """Labels of what a weight makes along an axis, the same at each of its calls.

        They are units where that is asked for (`widths.py`), and else follow the units that they are added to.
        """
        labels = self.columns(call, variable, axis)
        if len(labels) > 1:  # A single one cannot be removed.
            name = f"{call.path}:{WIDTHS[kind]}"
            self.widths.setdefault(name, Cell(name, kind, len(labels), labels))
        return labels

    def columns(self, call: Call, variable: Any, axis: int) -> Ids:
        """The same, of what can be no units by itself."""
        axis %= len(variable.shape)
        labels = self.labels_of(variable, axis, int(variable.shape[axis]))
        self.slot(variable, axis, labels, "own", call.site)
        return labels

    def labels_of(self, thing: Any, index: int, count: int) -> Ids:
        """Labels of an axis of a weight, or of a state of a cell, made on first use."""
        if (id(thing), index) not in self._made:
            self._made[id(thing), index] = self.couplings.new(count)
        return self._made[id(thing), index]

    @contextmanager
    def repeated(self, times: float) -> Iterator[None]:
        """While this is entered, the code of one step is followed, of which there are so many."""
        before, self.times = self.times, times
        try:
            yield
        finally:
            self.times = before

    def slot(self, variable: Any, axis: int, labels: Ids, role: Role, site: Site) -> None:
        """Record that positions of an axis of a weight belong to labels."""
        if variable is None:
            return
        axis %= len(variable.shape)
        key = (self.name(variable), axis)
        known = self.records.slots.setdefault(key, Found(*key, role, labels, site))
        if known.labels is not labels:
            self.tie(known.labels, labels, site, "a weight that is used at several places meets them in only one")
            known.labels = np.where(known.labels > NONE, known.labels, labels)
        # What is read by is silenced there, also where the same weight makes what follows the units (tied embeddings).
        known.role = min(known.role, role, key=("reads", "own", "follows").index)

    def tie(self, first: Ids, second: Ids, site: Site, reason: str) -> None:
        """Couple labels position by position; a position named on one side alone is pinned for `reason`."""
        self.couplings.union(first, second)
        self.records.ties.append((np.concatenate([first, second]), site))
        for one, other in ((first, second), (second, first)):
            lonely = one[(one > NONE) & (other == NONE)]
            self.pin_labels(lonely, site, reason)

    def pin(self, tensor: Traced, site: Site, reason: str) -> None:
        """Pin whatever a tensor holds."""
        if tensor.shadow is not None:
            self.pin_labels(tensor.shadow.labels, site, reason)

    def pin_labels(self, labels: Ids, site: Site, reason: str) -> None:
        """Pin labels."""
        labels = labels[labels > NONE]
        if len(labels):
            self.records.pins.append((labels, Pin(site, reason)))

    def product(self, rows: float, *axes: int | Ids) -> None:
        """Record a matrix product."""
        self.records.products.append(Product(float(rows * (self.times or 1)), axes))


@dataclass
class Call:
    """One call of an operation during a trace."""

    tracer: Tracer
    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def path(self) -> str:
        """Path of the operation."""
        return self.tracer.graph.paths[id(self.operation)]

    @property
    def site(self) -> Site:
        """Where the operation is, for messages."""
        return Site(f"{type(self.operation).__name__} {self.path!r}", line_of(self.operation))

    @property
    def tensors(self) -> list[Traced]:
        """All traced arguments, in order."""
        return [leaf for leaf in keras.tree.flatten((self.args, self.kwargs)) if isinstance(leaf, Traced)]

    @property
    def x(self) -> Traced:
        """The first traced argument."""
        return self.tensors[0]

    def values(self) -> Any:
        """The operation's real outputs."""
        args, kwargs = keras.tree.map_structure(
            lambda leaf: leaf.value if isinstance(leaf, Traced) else leaf, (self.args, self.kwargs)
        )
        return compiled_call(self.operation, args, kwargs)

    def one_each(self, tensor: Traced) -> Traced:
        """A weight of a cell with one number for each unit, labelled, so that it may be computed with; others as they
        are."""
        long = [axis for axis, size in enumerate(tensor.shape) if size > 1]
        source = tensor.axes[long[0]] if tensor.weight is not None and len(long) == 1 else None
        if source is None or not self.tracer.times:
            return tensor
        labels = self.tracer.columns(self, tensor.weight, source)
        return Traced(tensor.value, shadow(long[0], labels), tensor.weight, tensor.axes)

    def plain(self) -> Any:
        """Outputs without labels."""
        return keras.tree.map_structure(Traced, self.values())

    def labelled(self, axis: int, labels: Ids, silent: bool = True) -> Traced:
        """The one output, labelled along `axis`; labels without any name are left out."""
        value = self.values()
        return Traced(value, shadow(axis % len(value.shape), labels, silent))

    def pinned(self, reason: str, line: str = "") -> Any:
        """Outputs without labels, every argument's labels pinned."""
        for tensor in self.tensors:
            self.tracer.pin(tensor, Site(self.site.operation, line or self.site.location), reason)
        return self.plain()


def shadow(axis: int, labels: Ids, silent: bool = True) -> Shadow | None:
    """A shadow, or None when nothing is named."""
    return Shadow(axis, labels, silent) if bool((labels > NONE).any()) else None


def paired_states(tracer: Tracer) -> list[tuple[int, int]]:
    """States of the caller's: the place of each among the inputs, and that of the output of its units and rank."""
    given, found = list(tracer.carried), []
    for position, output in enumerate(tracer.outputs):
        mate = next((place for place in given if _same_units(tracer, tracer.inputs[place], output)), None)
        if mate is not None:
            given.remove(mate)
            found.append((mate, position))
    return found


def returned_states(tracer: Tracer) -> list[Traced]:
    """Outputs that are states of the caller's."""
    return [tracer.outputs[position] for _, position in paired_states(tracer)]


def carried_inputs(tracer: Tracer) -> list[int]:
    """Of the labelled inputs, those that a recurrent layer takes for a state: one that comes back, or a vector."""
    returned = returned_states(tracer)
    return [
        place
        for place in sorted(tracer.records.taken)
        if _is_vector_of_units(tracer, tracer.inputs[place])
        or any(_same_units(tracer, tracer.inputs[place], output) for output in returned)
    ]


def _is_vector_of_units(tracer: Tracer, given: Traced) -> bool:
    """Whether every entry of an input goes with a unit, and it has no steps."""
    classes = tracer.couplings.classes()
    return len(given.shape) == 2 and all(root in classes for root in tracer.couplings.roots(given.along(-1)).tolist())


def _same_units(tracer: Tracer, one: Traced, other: Traced) -> bool:
    if one.shadow is None or other.shadow is None or len(one.shape) != len(other.shape):
        return False
    first, second = (tracer.couplings.roots(tensor.shadow.labels) for tensor in (one, other) if tensor.shadow)
    return np.array_equal(first, second) and tracer.names_units(other.shadow.labels)
