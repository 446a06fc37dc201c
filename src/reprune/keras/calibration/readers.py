"""Which weights of a graph read what: where their features can be seen while it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from reprune.core.evidence.readings import Axis
from reprune.core.evidence.widths import Reader
from reprune.core.layers import WIDTHS, Structure
from reprune.keras.surgery.cloning import named_cells
from reprune.keras.tracing.graph import Graph, ModelGraph, run
from reprune.keras.tracing.rules.einsums import letters_of
from reprune.keras.tracing.rules.recurrent import cells_of

Features = Callable[[Any], Any]
INSIDE = -1
"""The place of what a weight reads that no argument of the layer is: what the heads of attention have found."""


class Reads(NamedTuple):
    """A weight that reads an argument of a layer.

    Attributes:
        axis: The weight, and its axis that is contracted.
        place: Which argument of the layer, or `INSIDE`.
        features: From the argument to what is contracted with the weight (sequences × … × features).
        first: Whether the rows of the first time step, or place, of all sequences come first, as in `reprune.torch`:
            what is fitted on one half of the rows is judged on the other.
    """

    axis: Axis
    place: int
    features: Features
    first: bool


def readers(graph: ModelGraph, axes: Collection[Axis]) -> dict[int, list[Reads]]:
    """Those of these weights whose features can be seen, by the id of the layer that holds them."""
    named = graph.weight_names()
    found: dict[int, list[Reads]] = {}
    for _, layer in graph.layers():
        for weight, axis, place, features, first in _weights(layer):
            if id(weight) not in named:
                continue
            key = (named[id(weight)], axis % len(weight.shape))
            if key in axes:
                found.setdefault(id(layer), []).append(Reads(key, place, features, first))
    return found


def argument(place: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A call's tensor at the place of `Reads`; a key that attention is not given is the value."""
    named = [kwargs[name] for name in ("sequences", "inputs", "query", "value", "key") if name in kwargs]
    return next(tensor for tensor in reversed([*args, *named][: place + 1]) if tensor is not None)


def read_in(
    graph: ModelGraph, part: Graph, inputs: list[Any], known: Mapping[int, Sequence[Reads]]
) -> list[tuple[Axis, Any]]:
    """What weights read while a part of a graph runs (… × features each), in the order in which they do.

    Args:
        graph: The whole graph.
        part: The part of it.
        inputs: Tensors that the part takes.
        known: The weights, as from `readers`; what is read inside of attention is left out.
    """
    found: list[tuple[Axis, Any]] = []

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if id(operation) in graph.inner:
            tensors = [leaf for leaf in keras.tree.flatten((args, kwargs)) if keras.ops.is_tensor(leaf)]
            return run(graph.inner[id(operation)], tensors, call)
        target = operation.layer if isinstance(operation, keras.layers.TimeDistributed) else operation
        for read in known.get(id(target), ()):
            if read.place != INSIDE:
                found.append((read.axis, read.features(argument(read.place, args, kwargs))))
        return operation(*args, **kwargs)

    run(part, inputs, call)
    return found


def _weights(layer: Any) -> Iterator[tuple[Any, int, int, Features, bool]]:
    """Weights of a layer, the axis that is contracted, and the rest of `Reads`."""
    if isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional)):
        two = isinstance(layer, keras.layers.Bidirectional)
        for part in (layer.forward_layer, layer.backward_layer) if two else (layer,):
            if getattr(part, "data_format", None) != "channels_first":
                kernel = getattr(cells_of(part)[0][1], "kernel", None)
                yield kernel, -2, 0, _as_it_is, True
    elif isinstance(layer, (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)):
        for part, place in (("query", 0), ("value", 1), ("key", 2), ("gate", 0)):
            yield getattr(getattr(layer, f"_{part}_dense", None), "kernel", None), 0, place, _as_it_is, False
        yield layer._output_dense.kernel, 0, INSIDE, _moved(-2), True
    elif isinstance(layer, keras.layers.EinsumDense):
        for axis in range(len(layer.kernel.shape)):
            yield layer.kernel, axis, 0, _named(layer.equation, axis), False
    elif hasattr(layer, "pointwise_kernel"):
        yield layer.pointwise_kernel, -2, 0, _each_channel(layer), True
    elif hasattr(layer, "kernel_size"):
        transposed = "Transpose" in type(layer).__name__
        yield getattr(layer, "kernel", None), -1 if transposed else -2, 0, _last(layer), True
    else:
        yield getattr(layer, "kernel", None), 0, 0, _as_it_is, False


def _as_it_is(x: Any) -> Any:
    return x


def _moved(axis: int) -> Features:
    return lambda x: keras.ops.moveaxis(x, axis, -1)


def _named(equation: str, axis: int) -> Features:
    """The axis of the input last that goes by the name of this axis of the weight."""

    def run(x: Any) -> Any:
        read, held, _ = letters_of(equation, len(x.shape))
        return keras.ops.moveaxis(x, read.index(held[axis]), -1)

    return run


def _last(layer: Any) -> Features:
    """Channels last."""
    return _moved(1) if layer.data_format == "channels_first" else _as_it_is


def _each_channel(layer: Any) -> Features:
    """What the second half of a separable convolution reads: its first half's channels, each by itself."""

    def run(x: Any) -> Any:
        made = keras.ops.depthwise_conv(
            x, layer.depthwise_kernel, layer.strides, layer.padding, layer.data_format, layer.dilation_rate
        )
        return _last(layer)(made)

    return run


def makers(graph: ModelGraph, structure: Structure, shown: Collection[str]) -> dict[int, list[tuple[str, Reader]]]:
    """By the id of a layer the widths that it makes, of those that show in nothing that is read."""
    owners = {id(weight): layer for _, layer in graph.layers() for weight in layer.weights}
    weights = graph.weights()
    found: dict[int, list[tuple[str, Reader]]] = {}
    for name in (name for name in structure.prunable if structure.layers[name].cell in WIDTHS and name not in shown):
        for slot in structure.slots_of(name, "own"):
            places = slot.by_unit(name, structure.layers[name].units)
            if places is not None:
                layer = owners[id(weights[slot.tensor])]
                found.setdefault(id(layer), []).append((name, Reader(slot, places)))
                break
    return found


def own_readers(graph: ModelGraph, axes: Collection[Axis]) -> dict[str, Axis]:
    """The recurrent kernel of each layer, as the consumer that reads the layer's own responses."""
    named = graph.weight_names()
    kernels = {name: getattr(cell, "recurrent_kernel", None) for cell, name in named_cells(graph)}
    found = {name: (named.get(id(kernel), ""), 0) for name, kernel in kernels.items()}
    return {name: key for name, key in found.items() if key in axes}
