"""Copies of a model's layers, smaller where units go, and the graph rebuilt from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from reprune.core.layers import Structure
from reprune.core.plan import Plan
from reprune.keras.surgery.layers import as_it_is, is_plain, made_anew
from reprune.keras.surgery.ragged import RaggedBidirectional
from reprune.keras.tracing.configuration import is_cell, made_with, replaced, sublayers
from reprune.keras.tracing.graph import ModelGraph, array
from reprune.keras.tracing.held_weights import HeldWeight
from reprune.keras.tracing.positional import ManyArguments
from reprune.keras.tracing.rules.recurrent import cell_in, cell_kind, cells_of, width


class Cloner:
    """Clones every operation of a graph once.

    Args:
        graph: The graph.
        plan: Which units stay.
        sizes: Units of every recurrent layer in the copy, by name.
    """

    def __init__(self, graph: ModelGraph, plan: Plan, sizes: Mapping[str, int]) -> None:
        self._graph = graph
        self._sizes = whole_sizes(plan.structure, sizes)
        self._attributes: dict[str, list[tuple[tuple[str | int, ...], int]]] = {}
        for attribute in plan.structure.sizes:
            value = attribute.extent(sizes) * attribute.times // attribute.divisor
            self._attributes.setdefault(attribute.owner, []).append((attribute.path, value))
        self._cells = {id(cell): name for cell, name in named_cells(graph)}
        self._clones: dict[int, Any] = {}
        self._opened: set[int] = set()

    def model(self, model: Any) -> Any:
        """The whole model, rebuilt, not compiled, its weights those of a new model."""
        if isinstance(model, keras.Sequential):
            return self._sequential(model)
        rebuilt = self._graph_copy(self._graph.root)
        if isinstance(self._graph.root, ManyArguments):
            return ManyArguments(inputs=rebuilt.input, outputs=rebuilt.output, name=model.name)
        if isinstance(model, type(rebuilt)) and type(model) is not type(rebuilt):
            # A class of the user's own around a functional graph: kept when it is made the usual way.
            try:
                rebuilt = type(model)(inputs=rebuilt.input, outputs=rebuilt.output, name=model.name)
            except TypeError:
                return rebuilt
        return rebuilt

    def of(self, layer: Any) -> Any:
        """The clone of a layer."""
        return self._clones[id(layer)]

    def clone(self, operation: Any) -> Any:
        """The clone of an operation, made on first use."""
        if id(operation) not in self._clones:
            self._clones[id(operation)] = self._make(operation)
        return self._clones[id(operation)]

    def _make(self, operation: Any) -> Any:
        if isinstance(operation, keras.Sequential):
            return self._sequential(operation)
        if id(operation) in self._graph.inner:
            copy = self._graph_copy(self._graph.inner[id(operation)], operation)
            if id(operation) in self._graph.opened:
                self._opened.add(id(copy))
            return copy
        if isinstance(operation, keras.layers.TimeDistributed):
            config = made_with(operation, "layer")
            return type(operation)(self.clone(operation.layer), **config)
        if isinstance(operation, keras.layers.Bidirectional):
            return self._bidirectional(operation)
        if isinstance(operation, keras.layers.StackedRNNCells):
            return type(operation)([self.clone(cell) for cell in operation.cells], **made_with(operation, "cells"))
        if type(operation) is keras.layers.RNN:
            return keras.layers.RNN(self.clone(operation.cell), **made_with(operation, "cell"))
        if isinstance(operation, HeldWeight):
            # A layer that the model does not run keeps its weights.
            holder = operation.holder if id(operation.holder) in self._graph.paths else None
            return HeldWeight(self.clone(holder) if holder else operation.holder, operation.index, name=operation.name)
        return self._leaf(operation)

    def _leaf(self, operation: Any) -> Any:
        if isinstance(operation, keras.layers.Lambda):
            config = {**made_with(operation, "function", "output_shape", "mask", "arguments"), "mask": operation.mask}
            shape = getattr(operation, "_output_shape", None)
            for (_, axis), length in self._sizes_in(operation):
                shape = replaced(shape, [axis], length)
            return type(operation)(operation.function, output_shape=shape, arguments=operation.arguments, **config)
        sizes = self._sizes_in(operation)
        others = sublayers(operation) if isinstance(operation, keras.layers.Layer) else []
        if others and all(id(layer) in self._graph.paths for layer in others):
            # It only looks into layers of the model: tied embeddings.
            return as_it_is(operation, built=False, parts={id(layer): self.clone(layer) for layer in others})
        if is_plain(operation) and not sizes:
            return as_it_is(operation)
        config = made_with(operation)
        cell = cell_in(operation)
        size = self._sizes.get(self._cells.get(id(cell), ""), width(cell))
        if cell_kind(cell) is not None and size != width(cell):
            config["units" if "units" in config else "filters"] = size
        if isinstance(operation, keras.layers.MultiHeadAttention) and config.get("output_shape") is None:
            # Left out, it is the width of the query, which may shrink.
            config["output_shape"] = (int(operation.output_dense.kernel.shape[-1]),)
        for (key, *place), value in sizes:
            if key in config:
                config[str(key)] = replaced(config[str(key)], place, value)
        clone = made_anew(operation, config)
        if hasattr(operation, "use_cudnn"):
            clone.use_cudnn = operation.use_cudnn
        return clone

    def _sizes_in(self, operation: Any) -> list[tuple[tuple[str | int, ...], int]]:
        cell = self._cells.get(id(cell_in(operation)), "")
        return self._attributes.get(self._graph.paths.get(id(operation), cell), [])

    def _bidirectional(self, layer: Any) -> Any:
        config = made_with(layer, "layer", "backward_layer")
        forward, backward = self.clone(layer.forward_layer), self.clone(layer.backward_layer)
        ends = [width(cells_of(part)[-1][1]) for part in (forward, backward)]
        same = ends[0] == ends[1] or isinstance(layer, RaggedBidirectional)
        kind = type(layer) if same else RaggedBidirectional
        return kind(forward, backward_layer=backward, **config)

    def _sequential(self, model: Any) -> Any:
        entry = self._entries(model.inputs, model)[0]
        layers = [self.clone(layer) for layer in model.layers]
        return keras.Sequential([entry, *layers], name=model.name)

    def _graph_copy(self, graph: Any, owner: Any = None) -> Any:
        # A model that was never compiled: clone_model would otherwise copy the training set-up its own way.
        bare = keras.Model(graph.input, graph.output, name=graph.name)
        entries = keras.tree.pack_sequence_as(graph.input, self._entries(graph.inputs, owner))
        return keras.models.clone_model(
            bare, input_tensors=entries, clone_function=self.clone, call_function=self._call
        )

    def _entries(self, inputs: Any, owner: Any) -> list[Any]:
        """Inputs of a graph; those of an inner one may be narrower."""
        shapes = [list(tensor.shape) for tensor in inputs]
        # How wide its inputs are is all that is noted of a graph, and of the model's own nothing: it has no path. Those
        # of the model itself are layers, which have theirs.
        for (_, index, axis), value in self._sizes_in(owner):
            shapes[int(index)][int(axis)] = value
        layers = [tensor._keras_history.operation for tensor in inputs]
        for shape, layer in zip(shapes, layers, strict=True):
            for (_, position), value in self._sizes_in(layer):
                shape[int(position)] = value
        return [
            keras.layers.InputLayer.from_config({**layer.get_config(), "batch_shape": tuple(shape)}).output
            for shape, layer in zip(shapes, layers, strict=True)
        ]

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        if id(operation) in self._opened:
            # The graph of an opened layer takes the tensors alone: the rest of its arguments is built in.
            tensors = [t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
            return operation(tensors)
        return operation(*args, **kwargs)


def whole_sizes(structure: Structure, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes with those of layers that are in parts: what their parts have together."""
    whole = dict(sizes)
    for name, layer in structure.layers.items():
        if layer.part is not None:
            whole[layer.part[0]] = whole.get(layer.part[0], 0) + sizes[name]
    return whole


def named_cells(graph: ModelGraph) -> list[tuple[Any, str]]:
    """The cells of a graph with the names of their layers; a shared one once."""
    found: dict[int, tuple[Any, str]] = {}
    for path, layer in graph.layers():
        recurrent = isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional, keras.layers.StackedRNNCells))
        if recurrent or is_cell(layer):
            for suffix, cell in cells_of(layer):
                found.setdefault(id(cell), (cell, path + suffix))
    return list(found.values())


def weight_arrays(graph: ModelGraph) -> dict[str, Any]:
    """The weights, in a precision that linear algebra accepts.

    Biases are no part of what criteria compare. Those of a GRU that resets after the product, and those of attention's
    heads, are matrices, which would be taken for weights: they are zeros here.
    """
    arrays = {name: array(weight) for name, weight in graph.weights().items()}
    parts = [cell for cell, _ in named_cells(graph)]
    for _, layer in graph.layers():
        if isinstance(layer, keras.layers.MultiHeadAttention):
            parts += [layer.query_dense, layer.key_dense, layer.value_dense]
    biases = {id(part.bias) for part in parts if len(getattr(getattr(part, "bias", None), "shape", ())) == 2}
    arrays.update({name: 0 * arrays[name] for name, weight in graph.weights().items() if id(weight) in biases})
    return {name: value.astype("float32") if value.dtype.itemsize < 4 else value for name, value in arrays.items()}
