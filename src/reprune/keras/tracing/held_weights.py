"""Weights of layers in the code of others: `ops.matmul(x, ops.transpose(self.embedding.embeddings))`, tied embeddings.

Keras computes with a variable at once, so that a graph would hold what it was, and not the weight. In a graph that was
found by following code, a layer stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import get_ident
from typing import Any

import keras


@keras.saving.register_keras_serializable(package="reprune")
class HeldWeight(keras.layers.Layer):  # type: ignore[misc]
    """A weight of another layer of the model, whatever it is called on: what that layer made, if it ran before.

    It is in no `.keras` file by itself: `result.save()` and `reprune.load` keep a model that holds one.

    Args:
        holder: The layer.
        index: The place of the weight among the layer's.
        options: Of a Keras layer.
    """

    def __init__(self, holder: Any, index: int, **options: Any) -> None:
        super().__init__(**options)
        # Not as an attribute that Keras follows: the weight is the other layer's.
        self.__dict__["holder"] = holder
        self.index = index
        self.supports_masking = True

    @property
    def variable(self) -> Any:
        """The weight."""
        return self.__dict__["holder"].weights[self.index]

    def call(self, x: Any) -> Any:
        """The weight as it is."""
        return keras.ops.convert_to_tensor(self.variable)

    def compute_output_spec(self, x: Any) -> Any:
        """Shape and type of the weight."""
        return keras.KerasTensor(tuple(self.variable.shape), dtype=self.variable.dtype)

    def compute_mask(self, x: Any, mask: Any = None) -> None:
        """A weight has no steps to leave out."""

    def get_config(self) -> dict[str, Any]:
        """There is none: the weight is another layer's."""
        raise NotImplementedError(
            "A model that computes with the weights of another layer is saved by its weights alone: use result.save() "
            "and reprune.load, or model.save_weights()."
        )


@contextmanager
def held_weights(inputs: Any, owner: Any) -> Iterator[None]:
    """While this is entered, functions of `keras.ops` in somebody's own code take weights of layers as symbols.

    Args:
        inputs: Symbolic tensors that the code is called on.
        owner: The model or layer whose code it is.
    """
    tensor = keras.tree.flatten(inputs)[0]
    held: dict[int, tuple[Any, int]] = {}
    # A layer of Keras's is copied as a whole, any other one part by part.
    for part in sorted((part for part in owner._flatten_layers() if part is not owner), key=_is_taken_apart):
        for place, weight in enumerate(part.weights):
            held.setdefault(id(weight), (part, place))
    symbols: dict[int, Any] = {}
    runs = {id(part): len(part._inbound_nodes) for part, _ in held.values()}
    thread = get_ident()

    def symbol(leaf: Any) -> Any:
        if id(leaf) not in held:
            return leaf
        if id(leaf) not in symbols:
            part, place = held[id(leaf)]
            # A copy of the layer has its weights once it has run.
            ran = part._inbound_nodes[runs[id(part)] :]
            source = ran[0].outputs[0] if ran else tensor
            symbols[id(leaf)] = HeldWeight(part, place, name=f"held_{len(symbols)}")(source)
        return symbols[id(leaf)]

    def taking(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            # Inside a layer that is called, Keras does what the layer does; another thread may answer with the model.
            mine = get_ident() == thread and not _in_a_layer()
            if mine and any(id(leaf) in held for leaf in keras.tree.flatten((args, kwargs))):
                args, kwargs = keras.tree.map_structure(symbol, (args, kwargs))
            return function(*args, **kwargs)

        return call

    functions = {name: value for name, value in vars(keras.ops).items() if _is_function(name, value)}
    for name, value in functions.items():
        setattr(keras.ops, name, taking(value))
    try:
        yield
    finally:
        for name, value in functions.items():
            setattr(keras.ops, name, value)


def _is_taken_apart(layer: Any) -> tuple[bool, int]:
    whole = type(layer).__module__.split(".")[0] == "keras" and not isinstance(layer, keras.Model)
    return not whole, len(layer.weights) if not whole else 0


def _is_function(name: str, value: Any) -> bool:
    return callable(value) and not isinstance(value, type) and not name.startswith(("_", "is_", "shape", "dtype"))


def _in_a_layer() -> bool:
    context = keras.src.backend.common.global_state.get_global_attribute("current_call_ctx")
    return context is not None
