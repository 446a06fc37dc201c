"""Recurrent layers taken apart while a graph runs: every cell shows what it reads and responds at all of its steps."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import keras

from reprune.keras.tracing.graph import ModelGraph, run
from reprune.keras.tracing.rules.recurrent import cell_kind, cells_of, width

Call = Callable[..., Any]


class Piece(NamedTuple):
    """One cell in one call of its layer.

    Attributes:
        cell: The cell.
        read: What it reads (sequences × time × …).
        response: What it emits, in the same order of time.
        mask: Valid steps, or None for all (sequences × time).
        states: Its states before the first step, or None for zeros.
        backward: Whether it runs from the last step to the first.
        state: Of a cell of the user's own, the place of the state that the response is.
    """

    cell: Any
    read: Any
    response: Any
    mask: Any
    states: Any
    backward: bool
    state: int = 0


def is_recurrent(operation: Any) -> bool:
    """Whether an operation is a layer that runs cells over sequences."""
    return isinstance(operation, (keras.layers.RNN, keras.layers.Bidirectional))


def entered(graph: ModelGraph, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Any:
    """What an operation returns that has a graph inside, or runs one or a recurrent layer at every step; else None.

    Args:
        graph: The graph.
        operation: An operation of it.
        args: What it is called with, by position.
        kwargs: And by name.
        call: Runs what is inside.
    """
    if id(operation) in graph.inner:
        tensors = [leaf for leaf in keras.tree.flatten((args, kwargs)) if keras.ops.is_tensor(leaf)]
        return run(graph.inner[id(operation)], tensors, call)
    if not isinstance(operation, keras.layers.TimeDistributed):
        return None
    if id(operation.layer) not in graph.inner and not is_recurrent(operation.layer):
        return None
    # With time folded into the batch, mask included.
    x = args[0]
    steps = keras.ops.shape(x)[:2]
    flat = keras.ops.reshape(x, (-1, *x.shape[2:]))
    mask = getattr(x, "_keras_mask", None)
    if mask is not None and len(mask.shape) > 2:
        flat._keras_mask = keras.ops.reshape(mask, (-1, *mask.shape[2:]))
    outputs = call(operation.layer, flat)
    return keras.tree.map_structure(lambda part: keras.ops.reshape(part, (*steps, *part.shape[1:])), outputs)


class Recurrences:
    """Runs recurrent layers, and shows their cells in the order in which they run.

    Args:
        show: Told of every cell.
        written: Ids of cells of the user's own that are shown, too: what they keep from step to step.
    """

    def __init__(self, show: Callable[[Piece], None], written: Collection[int] = ()) -> None:
        self._show = show
        self._written = written
        self._siblings: dict[int, Any] = {}

    def call(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a recurrent layer returns."""
        two = isinstance(layer, keras.layers.Bidirectional)
        parts = (layer.forward_layer, layer.backward_layer) if two else (layer,)
        # Before the layer overwrites them.
        starts = [_held(part) for part in parts]
        output = layer(*args, **kwargs)
        if not any(cell_kind(cell) or id(cell) in self._written for _, cell in cells_of(layer)):
            return output
        sequences = args[0] if args else kwargs["sequences"]
        mask = kwargs.get("mask", getattr(sequences, "_keras_mask", None))
        given = kwargs.get("initial_state", args[1] if len(args) > 1 else None)
        if given is not None:
            half = list(given)
            starts = [half[: len(half) // 2], half[len(half) // 2 :]] if two else [given]
        whole = keras.tree.flatten(output)[0]
        shown = layer.return_sequences and all(cell_kind(getattr(part, "cell", None)) for part in parts)
        first = any(getattr(part, "data_format", None) == "channels_first" for part in parts)
        if not shown or (two and (layer.merge_mode != "concat" or first)):
            for part, states in zip(parts, starts, strict=True):
                self._run_cells(part, sequences, mask, states)
            return output
        cells = [cells_of(part)[0][1] for part in parts]
        middle = width(cells[0])
        # The second half comes turned back, so that one order of time fits both.
        halves = (whole[..., :middle], whole[..., middle:]) if two else (whole,)
        read, mask = (_turned(part, parts[0].go_backwards) for part in (sequences, mask))
        for place, (cell, half, states) in enumerate(zip(cells, halves, starts, strict=True)):
            self._show(Piece(cell, read, half, mask, states, place == 1))
        return output

    def _run_cells(self, layer: Any, sequences: Any, mask: Any, states: Any) -> None:
        """Run a layer once more, cell by cell, with all its time steps."""
        cells = cells_of(layer)
        given = [states] if keras.ops.is_tensor(states) else states
        read, mask = (_turned(part, layer.go_backwards) for part in (sequences, mask))
        for index, (_, cell) in enumerate(cells):
            state = None
            if given is not None:
                state = given[index] if len(cells) > 1 else given
            response = self._sibling(layer, cell)(read, initial_state=state, mask=mask)
            if cell_kind(cell) is not None:
                self._show(Piece(cell, read, response, mask, state, False))
                read = response
                continue
            widths = keras.tree.flatten(cell.state_size)
            ends = [response.shape[-1] - sum(widths[place:]) for place in range(len(widths))]
            output, *kept = keras.ops.split(response, ends, axis=-1)
            starts = [None] * len(kept) if state is None else keras.tree.flatten(state)
            for place, (values, start) in enumerate(zip(kept, starts, strict=True)):
                self._show(Piece(cell, read, values, mask, start, False, place))
            read = output

    def _sibling(self, layer: Any, cell: Any) -> Any:
        """A layer around the same cell that returns all time steps."""
        if id(cell) not in self._siblings:
            options = {"return_sequences": True, "unroll": layer.unroll, "dtype": layer.dtype_policy}
            shown = cell if cell_kind(cell) is not None else _StatesBeside(cell)
            self._siblings[id(cell)] = keras.layers.RNN(shown, **options)
        return self._siblings[id(cell)]


class _StatesBeside:
    """A cell that emits its states, too, beside what the given one emits."""

    def __init__(self, cell: Any) -> None:
        self._cell = cell
        self.state_size = cell.state_size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cell, name)

    def call(self, inputs: Any, states: Any) -> Any:
        output, kept = self._cell(inputs, states)
        return keras.ops.concatenate([output, *keras.tree.flatten(kept)], axis=-1), kept

    __call__ = call


def _held(layer: Any) -> Any:
    """The states that a stateful layer starts from; None, which is zeros, of any other."""
    if not layer.stateful:
        return None
    # Their values: the variables hold the next ones by the time these are looked at.
    return keras.tree.map_structure(lambda state: keras.ops.convert_to_tensor(state.value), layer.states)


def _turned(values: Any, backwards: bool) -> Any:
    return keras.ops.flip(values, axis=1) if values is not None and backwards else values
