"""The graph of a subclassed model: its `call` runs once on symbolic inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from typing import Any

import keras

from reprune.core.errors import UnsupportedModelError
from reprune.keras.tracing.batch_zeros import zeros_of
from reprune.keras.tracing.configuration import loose_weights, made_with
from reprune.keras.tracing.held_weights import held_weights
from reprune.keras.tracing.legacy_calls import legacy_functions
from reprune.keras.tracing.location import noted_lines
from reprune.keras.tracing.open_sizes import open_sizes
from reprune.keras.tracing.positional import Arguments, ManyArguments, wanted_arguments
from reprune.keras.tracing.tensorflow_calls import translated

Graph = Any

_ALONE = RLock()
"""Functions of Keras are replaced while code is followed: two threads would put each other's back."""


def symbolic(model: Any, example: Any) -> Graph:
    """The graph of a model that has none, found by calling it on symbolic inputs shaped like `example`.

    Raises:
        UnsupportedModelError: When the model cannot be called on such, or holds weights outside any layer.
    """
    loose = loose_weights(model)
    if loose:
        raise UnsupportedModelError(
            f"{type(model).__name__} holds weights of its own ({', '.join(loose)}), outside any layer: put them into a "
            "keras.layers.Layer, so that a smaller model can be built from its layers."
        )
    failure: Exception | None = None
    for spec in _specs(model, example):
        given = list(spec.values) if isinstance(spec, Arguments) else [spec]
        kind, inputs = (ManyArguments, given) if isinstance(spec, Arguments) else (keras.Model, spec)
        with followed(given, model) as unknown:
            try:
                graph = kind(inputs=inputs, outputs=_call(model, *given), name=model.name)
                _build_again(graph)
                return graph
            except Exception as error:
                failure = error
    culprit = f" (in TensorFlow's {unknown[-1]})" if unknown else ""
    raise UnsupportedModelError(
        f"{type(model).__name__} cannot be called on symbolic inputs, which is how the graph of a subclassed model is "
        f"found{culprit}: {failure} Use keras.ops instead of functions of one backend, and no Python branches on "
        "values; or rebuild the model with the functional API."
    ) from failure


@contextmanager
def followed(inputs: Any, owner: Any) -> Iterator[list[str]]:
    """While this is entered, what models written for eager tensors do works on symbolic ones, too.

    Args:
        inputs: Symbolic tensors of which the first axis is the batch.
        owner: The model or layer whose code it is.

    Yields:
        The names of functions of TensorFlow that were called so and are not known.
    """
    # The last one takes what the others give.
    others = open_sizes(), zeros_of(inputs), noted_lines(), legacy_functions()
    with _ALONE, others[0], others[1], others[2], others[3], translated() as unknown, held_weights(inputs, owner):
        yield unknown


def _call(model: Any, *values: Any) -> Any:
    """What the `call` of a model, also one behind `tf.function`, returns for symbolic tensors."""
    return getattr(model.call, "python_function", model.call)(*values)


def _build_again(graph: Graph) -> None:
    """Raise if copies of the layers cannot be built on the shapes of a graph: a weight is as long as an open axis."""

    def fresh(layer: Any) -> Any:
        kept = (keras.Model, keras.layers.RNN, keras.layers.Bidirectional)
        if not isinstance(layer, keras.layers.Layer) or not layer.weights or isinstance(layer, kept):
            return layer
        try:
            return type(layer).from_config(made_with(layer))
        except Exception:
            # What cannot be copied is told when it has to be.
            return layer

    keras.models.clone_model(keras.Model(graph.input, graph.output), clone_function=fresh)


def _specs(model: Any, example: Any) -> Iterator[Any]:
    """Symbolic inputs to try: first with the axes between batch and features open, then as the example has them."""
    example = _as_built(model) if example is None else example
    if isinstance(example, Arguments):
        shapes: Any = tuple(_named_specs(dict(zip(example.names, example.values, strict=True))).values())
    else:
        shapes = _named_specs(example) if isinstance(example, Mapping) else _spec(example)
    for rule in (_open_axes, _closed_axes):
        if isinstance(example, Arguments):
            yield Arguments(example.names, tuple(keras.tree.map_structure(rule, shape) for shape in shapes))
        else:
            yield keras.tree.map_structure(rule, shapes)


def _as_built(model: Any) -> Any:
    """Shape of the call that built a model; what type its numbers had is not kept."""
    config = model.get_build_config() if model.built else None
    if len(wanted_arguments(model)) > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} takes several arguments, and Keras keeps the shape of the first alone: "
            "show one batch first, with reprune.inspect(model, [batch])."
        )
    if not config or not config.get("input_shape"):
        raise UnsupportedModelError(
            f"{type(model).__name__} is a subclassed model that has not been called yet: call it once on data."
        )
    return keras.KerasTensor(tuple(config["input_shape"]))


def _spec(example: Any, name: str | None = None) -> Any:
    return keras.tree.map_structure(lambda leaf: _Spec(tuple(leaf.shape), _dtype(leaf), name), example)


def _named_specs(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _spec(value, name if hasattr(value, "shape") else None) for name, value in values.items()}


class _Spec:
    def __init__(self, shape: tuple[int | None, ...], dtype: str, name: str | None = None) -> None:
        self.shape = shape
        self.dtype = dtype
        self.name = name


def _open_axes(spec: _Spec) -> Any:
    features = 0 if spec.dtype.startswith("int") and len(spec.shape) == 2 else 1
    inner = max(len(spec.shape) - 1 - features, 0)
    return keras.Input(shape=(None,) * inner + tuple(spec.shape[1 + inner :]), dtype=spec.dtype, name=spec.name)


def _closed_axes(spec: _Spec) -> Any:
    return keras.Input(shape=tuple(spec.shape[1:]), dtype=spec.dtype, name=spec.name)


def _dtype(leaf: Any) -> str:
    return str(keras.backend.standardize_dtype(leaf.dtype))
