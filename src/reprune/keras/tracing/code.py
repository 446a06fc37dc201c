"""The code of a layer as a graph: its `call` runs once on symbols, in which its weights are symbols, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from reprune.keras.tracing.configuration import made_with, sublayers
from reprune.keras.tracing.symbolic import followed

Graph = Any
Arguments = tuple[Any, Any]
"""What a layer is called on, by position and by name."""

_RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional)


def graph_inside(operation: Any, call: Arguments, weights: Sequence[Any] = ()) -> Graph:
    """The graph of what the `call` of a layer does with the tensors that it was called on.

    Args:
        operation: The layer.
        call: The symbolic arguments of a call.
        weights: Further inputs, of which its code makes use.
    """
    args, kwargs = call
    tensors = [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, keras.KerasTensor)]
    inputs = [keras.Input(batch_shape=t.shape, dtype=t.dtype, name=f"input_{i}") for i, t in enumerate(tensors)]
    fresh = iter(inputs)
    args, kwargs = keras.tree.map_structure(
        lambda leaf: next(fresh) if isinstance(leaf, keras.KerasTensor) else leaf, (args, kwargs)
    )
    with followed(inputs, operation):
        return keras.Model([*inputs, *weights], operation.call(*args, **kwargs), name=operation.name)


def graph_of_code(layer: Any, call: Arguments | None = None) -> tuple[Graph, list[Any]] | None:
    """The graph of a layer, and its own weights, which are the last inputs; None where it runs recurrent layers.

    Whatever its code raises on symbols is raised.

    Args:
        layer: The layer.
        call: Symbolic arguments; by default those of its first call.
    """
    call = call or call_of(layer)
    if call is None or any(isinstance(part, _RECURRENT) for part in layer._flatten_layers()):
        return None
    twin, symbols, held = _twin(layer)
    return graph_inside(twin, call, symbols), held


def graph_of_start(cell: Any, batch: int) -> tuple[Graph, list[Any], list[int]] | None:
    """The graph of the states that a cell learns to start from, its own weights, which are the inputs, and which states
    those are; None where all of them start as constants.

    Whatever its code raises on symbols is raised.
    """
    twin, symbols, held = _twin(cell)
    made = keras.tree.flatten(twin.get_initial_state(batch_size=batch))
    learnt = [place for place, state in enumerate(made) if isinstance(state, keras.KerasTensor)]
    return (keras.Model(symbols, [made[place] for place in learnt]), held, learnt) if learnt else None


def _twin(layer: Any) -> tuple[Any, list[Any], list[Any]]:
    """A twin of a layer, in whose attributes symbols stand for its own weights; the symbols, and the weights."""
    twin = object.__new__(type(layer))
    inside = {id(variable) for part in sublayers(layer) for variable in part.weights}
    mine = {id(v): v for v in layer.weights if len(v.shape) and id(v) not in inside}
    symbols = {key: keras.Input(batch_shape=tuple(v.shape), dtype=v.dtype) for key, v in mine.items()}
    bookkeeping = vars(keras.layers.Layer()).keys()
    for name, value in vars(layer).items():
        twin.__dict__[name] = value if name in bookkeeping else _replaced(value, symbols)
    return twin, list(symbols.values()), list(mine.values())


def _replaced(value: Any, symbols: dict[int, Any]) -> Any:
    """An attribute of a layer, symbols in place of weights, also in lists and dictionaries of them."""
    if id(value) in symbols:
        return symbols[id(value)]
    if isinstance(value, (list, tuple)) and any(id(part) in symbols for part in value):
        return [_replaced(part, symbols) for part in value]
    if isinstance(value, dict) and any(id(part) in symbols for part in value.values()):
        return {key: _replaced(part, symbols) for key, part in value.items()}
    return value


def shapes_made(layer: Any, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Shapes of the weights that a layer makes for inputs of these shapes, in the order of its weights.

    Whatever its code raises on symbols is raised.
    """
    args, kwargs = call_of(layer) or ((), {})
    given = iter([keras.Input(batch_shape=(None, *shape[1:])) for shape in shapes])
    args, kwargs = keras.tree.map_structure(
        lambda leaf: next(given) if isinstance(leaf, keras.KerasTensor) else leaf, (args, kwargs)
    )
    fresh = type(layer).from_config(made_with(layer))
    with followed([leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, keras.KerasTensor)], fresh):
        fresh(*args, **kwargs)
    return [tuple(variable.shape) for variable in fresh.weights]


def call_of(operation: Any) -> Arguments | None:
    """Symbolic arguments of an operation's first call."""
    for node in operation._inbound_nodes:
        if not node.is_input:
            return node.arguments.args, node.arguments.kwargs
    return None
