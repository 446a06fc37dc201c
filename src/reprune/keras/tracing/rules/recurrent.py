"""Recurrent layers and cells: where the units are."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import keras
import numpy as np

from reprune.core.layers import Pin
from reprune.keras.tracing.labels import NONE, Ids
from reprune.keras.tracing.rules import cells
from reprune.keras.tracing.rules.functions import is_elementwise, keeps_zero
from reprune.keras.tracing.tracer import Call, Cell, Traced, shadow

CONV_LSTM = (keras.layers.ConvLSTM1D, keras.layers.ConvLSTM2D, keras.layers.ConvLSTM3D)
STATE = "its initial state comes from values that cannot be made narrower"

# Kind of cell by class name: the word for it, its number of gates, its number of states.
CELLS: dict[str, tuple[str, int, int]] = {
    "LSTMCell": ("lstm", 4, 2),
    "GRUCell": ("gru", 3, 1),
    "SimpleRNNCell": ("rnn", 1, 1),
    "ConvLSTMCell": ("conv-lstm", 4, 2),
}


def cell_kind(cell: Any) -> tuple[str, int, int] | None:
    """Word, gates and states of a cell of Keras itself; None for any other, also for a subclass of one."""
    return CELLS.get(type(cell).__name__) if type(cell).__module__.split(".")[0] == "keras" else None


def cell_in(layer: Any) -> Any:
    """The cell, or stack of cells, that a layer runs; the layer itself where it is a cell."""
    return layer.cell if isinstance(layer, keras.layers.RNN) else layer


def cells_of(layer: Any) -> list[tuple[str, Any]]:
    """The cells of a recurrent layer in the order of its states, with the suffixes of their names."""
    if isinstance(layer, keras.layers.Bidirectional):
        return [
            (f":{direction}{suffix}", cell)
            for direction, part in (("forward", layer.forward_layer), ("backward", layer.backward_layer))
            for suffix, cell in cells_of(part)
        ]
    cell = cell_in(layer)
    if isinstance(cell, keras.layers.StackedRNNCells):
        return [(f":l{index}", part) for index, part in enumerate(cell.cells)]
    return [("", cell)]


def width(cell: Any) -> int:
    """Number of units (or filters) of a cell."""
    for name in ("units", "filters"):
        if hasattr(cell, name):
            return int(getattr(cell, name))
    states = keras.tree.flatten(getattr(cell, "state_size", 0))
    return int(states[0]) if states and isinstance(states[0], int) else 0


def recurrent(call: Call) -> Any:
    """LSTM, GRU, SimpleRNN, ConvLSTM, and RNN around one cell or a stack."""
    layer = call.operation
    output = call.values()
    channel = 2 if getattr(layer, "data_format", None) == "channels_first" else -1
    states = _states(call.args, call.kwargs)
    found = run_cells(call, cells_of(layer), _sequences(call), channel, states)
    flat = keras.tree.flatten(output)
    if found is None:
        return keras.tree.map_structure(Traced, output)
    last, held = found
    if not layer.return_state:
        flat, held = flat[:1], []
    state_channel = 1 if channel == 2 else -1
    labelled = [_label(flat[0], channel if layer.return_sequences else state_channel, last)]
    labelled += [_label(value, state_channel, cell) for value, cell in zip(flat[1:], held, strict=True)]
    return keras.tree.pack_sequence_as(output, labelled)


def bidirectional(call: Call) -> Any:
    """Bidirectional: two layers whose outputs are concatenated, or coupled by a sum or a product."""
    layer = call.operation
    output = call.values()
    states = _states(call.args, call.kwargs)
    half = len(states) // 2
    pairs = cells_of(layer)
    middle = len(cells_of(layer.forward_layer))
    channel = 2 if getattr(layer.forward_layer, "data_format", None) == "channels_first" else -1
    sequences = _sequences(call)
    forward = run_cells(call, pairs[:middle], sequences, channel, states[:half])
    backward = run_cells(call, pairs[middle:], sequences, channel, states[half:])
    flat = keras.tree.flatten(output)
    if forward is None or backward is None:
        for known in (forward, backward):
            if known is not None:
                call.tracer.pin_labels(known[0].labels, call.site, "the other direction is of a kind that is not known")
        return keras.tree.map_structure(Traced, output)
    axis = channel if layer.return_sequences else (1 if channel == 2 else -1)
    fore, aft = forward[0], backward[0]
    silent = fore.zero_at_zero and aft.zero_at_zero
    if layer.merge_mode is None:
        labelled = [_label(flat[0], axis, fore), _label(flat[1], axis, aft)]
    elif layer.merge_mode == "concat" and channel == -1:
        labelled = [_concatenated(flat[0], axis, fore.labels, aft.labels, silent)]
    else:
        # Keras concatenates along the last axis: where channels come first, each has those of both directions.
        call.tracer.tie(fore.labels, aft.labels, call.site, "the other direction cannot lose units")
        labelled = [Traced(flat[0], shadow(axis % len(flat[0].shape), np.maximum(fore.labels, aft.labels), silent))]
    if layer.return_state:
        held = [*forward[1], *backward[1]]
        state_axis = 1 if channel == 2 else -1
        labelled += [_label(v, state_axis, c) for v, c in zip(flat[len(labelled) :], held, strict=True)]
    return keras.tree.pack_sequence_as(output, labelled)


def lone_cell(call: Call) -> Any:
    """A cell that the model's own code calls step by step."""
    output = call.values()
    x = call.x
    states = [leaf for leaf in keras.tree.flatten((call.args, call.kwargs)) if isinstance(leaf, Traced)][1:]
    found = run_cells(call, cells_of(call.operation), x, -1, states)
    if found is None:
        return keras.tree.map_structure(Traced, output)
    flat = keras.tree.flatten(output)
    return keras.tree.pack_sequence_as(
        output, [_label(value, -1, cell) for value, cell in zip(flat, [found[0], *found[1]], strict=True)]
    )


def run_cells(
    call: Call, stack: Sequence[tuple[str, Any]], x: Traced, channel: int, states: Sequence[Traced]
) -> tuple[Cell, list[Cell]] | None:
    """Let a stack of cells read a sequence: the last cell, and the cell of every state; None when one is not known."""
    labels = x.along(channel)
    if x.shadow is not None and not labels.any():
        call.tracer.pin(x, call.site, "a recurrent layer runs over its units as over time")
    rows = prod(x.shape) / x.shape[channel]
    call.tracer.records.steps = call.tracer.records.steps or rows
    held: list[Cell] = []
    last: Cell | None = None
    for suffix, layer_cell in stack:
        kind = cell_kind(layer_cell)
        if kind is not None:
            last = _cell(call, layer_cell, kind, call.path + suffix)
            _reads(call, layer_cell, kind[1], labels, rows, last)
            held += [last] * kind[2]
        else:
            step = _written(call, layer_cell, call.path + suffix, x, last, rows)
            if step is None:
                for met in [*(cell.labels for cell in held), *(state.along(-1) for state in states)]:
                    call.tracer.pin_labels(met, call.site, f"the code of {type(layer_cell).__name__} is not followed")
                return None
            last = step.output
            held += step.states
        labels = last.labels
    for state, cell in zip(states, held, strict=False):
        labels = state.along(1 if channel == 2 else -1)
        call.tracer.take_state(labels)
        call.tracer.tie(labels, cell.labels, call.site, STATE)
    assert last is not None
    if any(state.shadow is not None and not state.shadow.silent for state in states):
        for cell in (last, *held):
            cell.zero_at_zero = False
    return last, held


def _written(call: Call, cell: Any, name: str, x: Traced, below: Cell | None, rows: float) -> cells.Step | None:
    """One step of a cell of the user's own, that reads the input or the cell below it."""
    layer = call.operation
    parts = (layer.forward_layer, layer.backward_layer) if isinstance(layer, keras.layers.Bidirectional) else (layer,)
    makers = [part for part in parts if getattr(part, "cell", None) is cell and type(part) is not keras.layers.RNN]
    if below is not None:
        zeros = keras.ops.zeros((x.shape[0], below.units), dtype=cell.compute_dtype)
        x = Traced(zeros, shadow(1, below.labels, below.zero_at_zero))
    elif len(x.shape) > 2:
        found = None if x.shadow is None else shadow(x.shadow.axis - 1, x.shadow.labels, x.shadow.silent)
        x = Traced(x.value[:, 0], found)
    return cells.followed(call, cell, makers[0] if makers else cell, name, x, rows / x.shape[0])


def _cell(call: Call, layer_cell: Any, kind: tuple[str, int, int], name: str) -> Cell:
    tracer = call.tracer
    if (id(layer_cell), 0) in tracer.cells:
        return tracer.cells[id(layer_cell), 0]
    word, gates, _ = kind
    units = width(layer_cell)
    # Inside a cell of the user's own it has that one's states, and units.
    inside = bool(tracer.times)
    labels = tracer.couplings.new(units, "" if inside else name) if units > 1 else np.zeros(units, dtype=np.int64)
    cell = Cell(name, word, units, labels, keeps_zero(layer_cell.activation))
    tracer.cells[id(layer_cell), 0] = cell
    if units < 2 and not inside:
        tracer.refused[name] = (word, units, Pin(call.site, "it has a single unit"))
    for function in (layer_cell.activation, layer_cell.recurrent_activation if gates > 1 else None):
        if not is_elementwise(function):
            title = getattr(function, "__name__", type(function).__name__)
            tracer.pin_labels(labels, call.site, f"its activation {title} mixes the units")
    if getattr(layer_cell, "data_format", None) == "channels_first" and keras.backend.backend() == "tensorflow":
        tracer.pin_labels(labels, call.site, "channels_first is not followed")
    own = np.tile(labels, gates)
    for weight in (layer_cell.kernel, layer_cell.recurrent_kernel, layer_cell.bias if layer_cell.use_bias else None):
        tracer.slot(weight, -1, own, "own", call.site)
    tracer.slot(layer_cell.recurrent_kernel, -2, labels, "reads", call.site)
    return cell


def _reads(call: Call, layer_cell: Any, gates: int, labels: Ids, rows: float, cell: Cell) -> None:
    tracer = call.tracer
    tracer.slot(layer_cell.kernel, -2, labels, "reads", call.site)
    bias = tracer.name(layer_cell.bias) if layer_cell.use_bias else None
    own = np.tile(cell.labels, gates)
    for weight, read in ((layer_cell.kernel, labels), (layer_cell.recurrent_kernel, cell.labels)):
        # A GRU that resets before the product reads its state twice, once scaled: nothing can be folded in there.
        foldable = weight is layer_cell.kernel or getattr(layer_cell, "reset_after", True)
        if (read > NONE).any() and foldable:
            tracer.records.consumers[tracer.name(weight), len(weight.shape) - 2] = bias
        window = prod(weight.shape[:-2])
        tracer.product(rows * window, read, own)


def _sequences(call: Call) -> Traced:
    first = call.args[0] if call.args else call.kwargs.get("sequences", call.kwargs.get("inputs"))
    found = [leaf for leaf in keras.tree.flatten(first) if isinstance(leaf, Traced)]
    return found[0]


def _states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Traced]:
    given = kwargs.get("initial_state", args[1] if len(args) > 1 else None)
    return [leaf for leaf in keras.tree.flatten(given) if isinstance(leaf, Traced)]


def _label(value: Any, axis: int, cell: Cell) -> Traced:
    return Traced(value, shadow(axis % len(value.shape), cell.labels, cell.zero_at_zero))


def _concatenated(value: Any, axis: int, first: Ids, second: Ids, silent: bool) -> Traced:
    return Traced(value, shadow(axis % len(value.shape), np.concatenate([first, second]), silent))
