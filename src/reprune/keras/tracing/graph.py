"""The operation graph of a Keras model, and the names of everything in it.

Functional and Sequential models carry their graph. Other models, and custom layers made of layers, are called on
symbolic inputs once, which gives them one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np

from reprune.core.errors import UnsupportedModelError, keras_2_error
from reprune.keras.tracing.code import call_of, graph_inside
from reprune.keras.tracing.configuration import is_cell, loose_weights, sublayers
from reprune.keras.tracing.location import line_of_error
from reprune.keras.tracing.positional import Arguments
from reprune.keras.tracing.symbolic import symbolic

Layer = Any
Graph = Any

# Graphs of subclassed models: they are made from an example, which `apply` does not have.
_GRAPHS: WeakKeyDictionary[Any, Graph] = WeakKeyDictionary()

# Of these the adapter knows what is inside; they are never opened by a symbolic call.
_WRAPPERS = (keras.layers.Bidirectional, keras.layers.TimeDistributed, keras.layers.RNN, keras.layers.StackedRNNCells)


class ModelGraph:
    """A model's operations as a graph of graphs, each operation with its path.

    Attributes:
        root: The model as a functional one that shares its layers.
        paths: Path of every operation by id, such as `encoder/lstm`; a layer that is used at several places has the
            first.
        inner: The graph inside an operation by id: nested models, and custom layers made of layers.
        opened: Ids of the operations that had no graph of their own.
        closed: Why the code of a layer could not be followed, and where, by the layer's id.
    """

    def __init__(self, root: Graph) -> None:
        self.root = root
        self.paths: dict[int, str] = {}
        self.inner: dict[int, Graph] = {}
        self.opened: set[int] = set()
        self.closed: dict[int, tuple[str, str]] = {}
        self.operations: list[Any] = []
        self._visit(root, "")

    def _visit(self, graph: Graph, prefix: str) -> None:
        for operation in graph.operations:
            if id(operation) in self.paths:
                continue
            path = self._path(f"{prefix}{operation.name}")
            self.paths[id(operation)] = path
            self.operations.append(operation)
            target = operation.layer if isinstance(operation, keras.layers.TimeDistributed) else operation
            if target is not operation:
                self.paths.setdefault(id(target), path)
            inner = self._open(target, None if target is not operation else call_of(operation))
            if inner is not None:
                self.inner[id(target)] = inner
                self._visit(inner, f"{path}/")

    def _path(self, path: str) -> str:
        # Layers of the same name may meet where the graphs of custom layers were opened.
        taken, number, free = set(self.paths.values()), 1, path
        while free in taken:
            free, number = f"{path}_{number}", number + 1
        return free

    def _open(self, operation: Any, call: tuple[Any, Any] | None) -> Graph | None:
        graph = own_graph(operation)
        if graph is not None or call is None or not _is_composite(operation):
            return graph
        try:
            graph = graph_inside(operation, call)
        except Exception as error:
            # Whatever a stranger's code raises on symbolic inputs: the layer stays closed, and pins what it reads.
            self.close(operation, error)
            return None
        self.opened.add(id(operation))
        return graph

    def close(self, operation: Any, error: Exception) -> None:
        """Note why the code of an operation cannot be followed."""
        said = str(error).strip() or type(error).__name__
        self.closed[id(operation)] = said.splitlines()[0], line_of_error(error)

    def layers(self) -> Iterator[tuple[str, Layer]]:
        """Path and layer of everything that has weights and no graph inside."""
        for operation in self.operations:
            target = operation.layer if isinstance(operation, keras.layers.TimeDistributed) else operation
            if isinstance(target, keras.layers.Layer) and id(target) not in self.inner:
                yield self.paths[id(operation)], target

    def weight_names(self) -> dict[int, str]:
        """The name of every weight, by its id."""
        return {id(weight): name for name, weight in self.weights().items()}

    def weights(self) -> dict[str, Any]:
        """Every weight by name, in a fixed order; shared ones once."""
        named: dict[str, Any] = {}
        seen: set[int] = set()
        for path, layer in self.layers():
            for name, variable in named_weights(layer, path):
                if id(variable) not in seen:
                    seen.add(id(variable))
                    named[name] = variable
        return named

    def states(self) -> list[Any]:
        """The variables that carry the states of stateful layers from batch to batch."""
        found = []
        for _, layer in self.layers():
            two_way = isinstance(layer, keras.layers.Bidirectional)
            for part in (layer.forward_layer, layer.backward_layer) if two_way else (layer,):
                states = keras.tree.flatten(getattr(part, "states", None))
                found += [state for state in states if hasattr(state, "assign")]
        return found


def named_weights(layer: Layer, path: str) -> list[tuple[str, Any]]:
    """The weights of a layer in the order of `layer.weights`, each named by its path."""
    names: dict[int, str] = {}
    for name, variable in _parts(layer, path):
        while name in names.values():
            name += "_"
        names.setdefault(id(variable), name)
    return [(names[id(variable)], variable) for variable in layer.weights]


def _parts(layer: Layer, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(layer, keras.layers.Bidirectional):
        yield from _parts(layer.forward_layer, f"{path}/forward")
        yield from _parts(layer.backward_layer, f"{path}/backward")
    elif isinstance(layer, keras.layers.RNN):
        yield from _parts(layer.cell, path)
    elif isinstance(layer, keras.layers.StackedRNNCells):
        for index, cell in enumerate(layer.cells):
            yield from _parts(cell, f"{path}/l{index}")
    else:
        inside = {id(variable) for part in sublayers(layer) for variable in part.weights}
        for variable in layer.weights:
            if id(variable) not in inside:
                yield f"{path}/{variable.name}", variable
        for part in sublayers(layer):
            yield from _parts(part, f"{path}/{part.name}")


def own_graph(layer: Any) -> Graph | None:
    """The graph that a functional or sequential model carries, as a functional model; None for anything else."""
    if isinstance(layer, keras.Sequential):
        if not layer.built or not layer.inputs:
            raise UnsupportedModelError(
                f"Sequential model {layer.name!r} has not been built: give it a keras.Input or call it once on data."
            )
        return keras.Model(layer.inputs[0], layer.outputs[0], name=layer.name)
    if isinstance(layer, keras.Model) and hasattr(layer, "operations"):
        return layer
    return None


def _is_composite(operation: Any) -> bool:
    """Whether a layer is a custom one made of other layers, with no weights of its own."""
    if not isinstance(operation, keras.layers.Layer) or isinstance(operation, _WRAPPERS) or is_cell(operation):
        return False
    if type(operation).__module__.split(".")[0] == "keras":
        return False
    return bool(sublayers(operation)) and not loose_weights(operation)


def graph_of(model: Any, example: Any = None) -> ModelGraph:
    """The graph of a model; one that has none is called on symbolic inputs shaped like `example`.

    Raises:
        UnsupportedModelError: When the model is no Keras 3 model, or cannot be called on symbolic inputs.
    """
    return ModelGraph(root_of(model, example))


def root_of(model: Any, example: Any = None) -> Graph:
    """The graph of a model as a functional one that shares its layers; see `graph_of`."""
    check_keras(model)
    graph = own_graph(model)
    if graph is not None:
        return graph
    if model not in _GRAPHS:
        _GRAPHS[model] = symbolic(model, example)
    return _GRAPHS[model]


def check_keras(model: Any) -> Any:
    """The model; an `UnsupportedModelError` for what is no Keras 3 model says how to get one."""
    if isinstance(model, keras.Model):
        return model
    name = f"{type(model).__module__}.{type(model).__name__}"
    if name.split(".")[0] in ("tf_keras", "tensorflow"):
        raise keras_2_error(name)
    raise UnsupportedModelError(f"{name} is not a keras.Model.")


def array(value: Any) -> Any:
    """A NumPy copy of a tensor or variable."""
    tensor = keras.ops.convert_to_tensor(value)
    if keras.backend.backend() == "tensorflow":
        # Keras's own way asks NumPy 2 for a copy in words that TensorFlow's tensors do not know: a warning each time.
        return np.array(tensor.numpy())
    return np.array(keras.ops.convert_to_numpy(tensor))


def widened(values: Any) -> Any:
    """An array, half precision in single: exponentials overflow in it, and NumPy knows only one kind of it."""
    half = keras.backend.is_float_dtype(keras.backend.standardize_dtype(values.dtype)) and values.dtype.itemsize < 4
    return values.astype("float32") if half else values


def run(graph: Graph, inputs: list[Any], call: Callable[..., Any]) -> Any:
    """Run a graph, with `call(operation, *args, **kwargs)` in place of every operation."""

    def bound(operation: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: call(operation, *args, **kwargs)

    return graph._run_through_graph(inputs, operation_fn=bound)


def flat_inputs(graph: Graph, batch: Any) -> list[Any]:
    """A batch as the list of tensors that a graph takes."""
    values = list(batch.values) if isinstance(batch, Arguments) else batch
    if not isinstance(values, Mapping):
        leaves = keras.tree.flatten(values)
        if len(leaves) == len(graph.inputs):
            # In the nest that Keras expects: of any other it warns.
            values = keras.tree.pack_sequence_as(graph.input, leaves)
    return list(graph._standardize_inputs(values))


def is_tensor(value: Any) -> bool:
    """Whether a value is an array of NumPy or of the backend."""
    return isinstance(value, np.ndarray) or bool(keras.ops.is_tensor(value))
