"""Cells of the user's own, in `keras.layers.RNN` or called step by step: the code of one step is followed.

What a cell keeps from step to step are its units: the positions of a state, and those of the next one, go together. A
smaller model makes the cell anew, by the option of its configuration that says how wide the state is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import keras
import numpy as np

from reprune.core.layers import Pin, Site
from reprune.keras.tracing.code import graph_of_code, graph_of_start
from reprune.keras.tracing.configuration import made_with, replaced
from reprune.keras.tracing.labels import Ids
from reprune.keras.tracing.rules.written import labels_through, weight
from reprune.keras.tracing.tracer import Call, Cell, Traced, shadow

_NEXT = "a state is made from values that cannot be made narrower"
_START = "a state starts from values that cannot be made narrower"
Place = tuple[str | int, ...]


class Step(NamedTuple):
    """What a cell emits and keeps.

    Attributes:
        output: The units in what it emits.
        states: The units in each of its states.
    """

    output: Cell
    states: list[Cell]


def state_name(name: str, state: int) -> str:
    """The address of the units of a state that has units of its own."""
    return name if state == 0 else f"{name}:state{state}"


def cell_name(name: str) -> str:
    """The address of the cell to which the units of a state belong."""
    return name.partition(":state")[0]


def followed(call: Call, cell: Any, holder: Any, name: str, x: Traced, steps: float) -> Step | None:
    """What one step of a cell does, with labels; None where it cannot be followed, and is refused.

    Args:
        call: The call of the cell, or of the layer that runs it.
        cell: The cell.
        holder: The cell, or the layer that makes it.
        name: Its address.
        x: What it reads at one step (sequences × features).
        steps: How many steps it does.
    """
    tracer, kind = call.tracer, type(cell).__name__.lower()
    sizes = keras.tree.flatten(cell.state_size)
    labels = [tracer.labels_of(cell, state, size if isinstance(size, int) else 0) for state, size in enumerate(sizes)]
    try:
        if not all(isinstance(size, int) for size in sizes) or len(x.shape) != 2:
            raise ValueError("states and inputs are followed that are one row of numbers for each sequence")
        found = _one_step(call, cell, x, labels, steps)
    except Exception as error:
        # Whatever a stranger's code raises on symbols.
        tracer.graph.close(cell, error)
        why, line = tracer.graph.closed[id(cell)]
        pin = Pin(Site(call.site.operation, line), f"the code of {type(cell).__name__} cannot be followed: {why}")
        units = sizes[0] if sizes and isinstance(sizes[0], int) else 0
        tracer.refused[name] = kind, units, pin
        tracer.pin(x, pin.site, pin.reason)
        return None
    output, states = found
    zero = _tie_start(call, cell, labels, x.shape[0])
    for state, own in enumerate(labels):
        if len(own) > 1:
            _take_size(call, holder, cell, name, state, own)
    return Step(
        Cell(name, kind, output.shape[-1], output.along(-1), zero and (output.shadow is None or output.shadow.silent)),
        list(_named(call, cell, name, kind, labels, states, zero)),
    )


def _one_step(call: Call, cell: Any, x: Traced, labels: list[Ids], steps: float) -> tuple[Traced, list[Traced]]:
    """What a step emits and keeps, its states tied to the next ones."""
    tracer = call.tracer
    options = {"training": False} if "training" in inspect.signature(cell.call).parameters else {}
    given = [keras.Input((len(own),), dtype=cell.compute_dtype) for own in labels]
    nest = list(cell.state_size) if keras.tree.is_nested(cell.state_size) else [cell.state_size]
    read = keras.Input(x.shape[1:], dtype=keras.backend.standardize_dtype(x.value.dtype))
    opened = graph_of_code(cell, ((read, keras.tree.pack_sequence_as(nest, given)), options))
    if opened is None:
        raise ValueError("it runs a recurrent layer at every step")
    graph, held = opened
    known = {id(variable): weight(variable) for variable in cell.weights}
    zeros = [keras.ops.zeros((x.shape[0], len(own)), dtype=cell.compute_dtype) for own in labels]
    silent = [True] * len(labels)
    while True:
        before = [Traced(value, shadow(1, own, quiet)) for value, own, quiet in zip(zeros, labels, silent, strict=True)]
        with tracer.repeated(steps):
            made = labels_through(call, graph, [x, *before, *(known[id(variable)] for variable in held)], known)
        output, *states = keras.tree.flatten(made)
        if len(states) != len(labels):
            raise ValueError(f"a step returns {len(states)} states beside its output, and takes {len(labels)}")
        # What is not zero after a step is not zero before the next: a state that starts as zeros.
        quiet = [s and (v.shadow is None or v.shadow.silent) for s, v in zip(silent, states, strict=True)]
        if quiet == silent:
            break
        silent = quiet
    for own, later in zip(labels, states, strict=True):
        tracer.tie(own, later.along(-1), call.site, _NEXT)
    for variable in (variable for variable in held if len(variable.shape) > 1):
        name = tracer.name(variable)
        slots = [tracer.records.slots.get((name, axis)) for axis in range(len(variable.shape))]
        axes = [size if slot is None else slot.labels for size, slot in zip(variable.shape, slots, strict=True)]
        tracer.product(prod(x.shape[:-1]) * steps, *axes)
    return output, states


def _tie_start(call: Call, cell: Any, labels: list[Ids], batch: int) -> bool:
    """Tie the states to weights that they start from; whether they are zeros where those are."""
    try:
        opened = graph_of_start(cell, batch)
    except Exception:
        # Many have no code for it. Whatever a stranger's raises on symbols: a weight that does not fit is told when the
        # cell is made anew.
        return True
    if opened is None:
        return True
    graph, held, places = opened
    known = {id(variable): weight(variable) for variable in held}
    with call.tracer.repeated(1.0):
        made = labels_through(call, graph, [known[id(variable)] for variable in held], known)
    for place, start in zip(places, keras.tree.flatten(made), strict=True):
        if start.weight is not None and start.axes[-1] is not None:
            call.tracer.slot(start.weight, start.axes[-1], labels[place], "follows", call.site)
        else:
            call.tracer.tie(labels[place], start.along(-1), call.site, _START)
    return all(start.shadow is None or start.shadow.silent for start in keras.tree.flatten(made))


def _take_size(call: Call, holder: Any, cell: Any, name: str, state: int, labels: Ids) -> None:
    """Note which option of the cell says how wide a state is."""
    place = option_of(holder, state)
    if place is not None:
        call.tracer.size(call, place, labels, owner=name)
        return
    call.tracer.pin_labels(
        labels,
        call.site,
        f"no number in the get_config() of {type(holder).__name__} makes the states of {type(cell).__name__} narrower: "
        "let its constructor take the number of units",
    )


def option_of(holder: Any, state: int) -> Place | None:
    """The number in a layer's configuration that is the width of a state, tried out: one less makes it one narrower."""

    def wide(layer: Any) -> Any:
        return keras.tree.flatten(getattr(layer, "cell", layer).state_size)[state]

    try:
        config, width = made_with(holder), wide(holder)
    except Exception:
        # Whatever a stranger's code raises: there is no such option.
        return None
    for place, value in _numbers(config):
        if value == width:
            try:
                if wide(type(holder).from_config(replaced(config, place, value - 1))) == width - 1:
                    return place
            except Exception:
                # As above: it is another number that may not be changed alone.
                continue
    return None


def _numbers(config: Any, place: Place = ()) -> Iterator[tuple[Place, int]]:
    if isinstance(config, dict):
        pairs: Any = config.items()
    elif isinstance(config, (list, tuple)):
        pairs = enumerate(config)
    else:
        if isinstance(config, int) and not isinstance(config, bool):
            yield place, config
        return
    for key, part in pairs:
        yield from _numbers(part, (*place, key))


def _named(
    call: Call, cell: Any, name: str, kind: str, labels: list[Ids], states: list[Traced], zero: bool
) -> Iterator[Cell]:
    """The units in each state: those of another state that they go with, or some of their own."""
    tracer, taken = call.tracer, set[int]()
    for state, (own, later) in enumerate(zip(labels, states, strict=True)):
        silent = zero and (later.shadow is None or later.shadow.silent)
        held = own if len(own) > 1 else np.zeros_like(own)
        found = Cell(state_name(name, state), kind, len(own), held, silent)
        roots = set(tracer.couplings.roots(held).tolist())
        if held.any() and not roots & taken:
            tracer.couplings.name(own, found.name)
            tracer.cells.setdefault((id(cell), state), found)
            taken |= roots
        yield found
