"""For export to ONNX: LSTM, GRU and SimpleRNN layers as the standard's own operators.

tf2onnx knows the loops that Keras makes of LSTMs that start from zeros, and no others. While a model is traced, each
layer here calls one opaque function in the place of its loop, and the conversion writes the operator where it meets the
function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from reprune.keras.tracing.configuration import sublayers

_OPERATORS = {keras.layers.LSTM: "LSTM", keras.layers.GRU: "GRU", keras.layers.SimpleRNN: "RNN"}
_ACTIVATIONS = {keras.activations.tanh: "Tanh", keras.activations.relu: "Relu", keras.activations.sigmoid: "Sigmoid"}
Handlers = dict[str, tuple[Any, list[Any]]]


@contextmanager
def opaque_loops(model: Any) -> Iterator[Handlers]:
    """Within this context a model's recurrent layers are opaque; gives what tells tf2onnx what they are."""
    found: dict[str, Any] = {}
    for layer in _recurrent(model):
        # On the instance, and gone afterwards.
        object.__setattr__(layer, "inner_loop", _inner_loop(layer, found))
    try:
        yield {name: (_convert, [name, found]) for name in ("PyFunc", "PyFuncStateless", "EagerPyFunc")}
    finally:
        for layer in _recurrent(model):
            object.__delattr__(layer, "inner_loop")


def _recurrent(layer: Any) -> Iterator[Any]:
    if type(layer) in _OPERATORS and _activations(layer) is not None:
        yield layer
    for part in sublayers(layer):
        yield from _recurrent(part)


def _activations(layer: Any) -> list[str] | None:
    """The names of a layer's nonlinearities in ONNX's order, or None if it has others."""
    functions = [layer.cell.activation]
    if not isinstance(layer, keras.layers.SimpleRNN):
        functions = [layer.cell.recurrent_activation, *functions]
    if isinstance(layer, keras.layers.LSTM):
        functions.append(layer.cell.activation)
    found = [_ACTIVATIONS.get(function) for function in functions]
    return None if None in found else [name for name in found if name is not None]


def _inner_loop(layer: Any, found: dict[str, Any]) -> Any:
    import tensorflow as tf

    original, weights = layer.inner_loop, _weights(layer)

    def inner_loop(sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        if any(part is not None for part in keras.tree.flatten(mask)):
            return original(sequences, initial_state, mask, training=training)
        states = keras.tree.flatten(initial_state)
        if layer.go_backwards:
            sequences = tf.reverse(sequences, [1])
        steps = tf.transpose(sequences, [1, 0, 2])
        given = [steps, *(state[None] for state in states)]
        kinds = [tf.float32] * len(given)
        output, *ends = tf.numpy_function(lambda *_: None, given, kinds, stateful=False, name="recurrent")
        found[output.op.get_attr("token").decode()] = layer, weights
        # An operation: what is only noted on a tensor does not reach the converter.
        output = tf.ensure_shape(output, (sequences.shape[1], 1, sequences.shape[0], layer.units))
        ends = [tf.ensure_shape(end, (1, sequences.shape[0], layer.units))[0] for end in ends]
        output = tf.transpose(output[:, 0], [1, 0, 2])
        return ends[0], output if layer.return_sequences else ends[0][:, None], ends

    return inner_loop


def _convert(ctx: Any, node: Any, name: str, args: list[Any]) -> None:
    """tf2onnx's handler: the operator in the place of the opaque function."""
    (found,) = args
    layer, weights = found[node.get_attr_value("token").decode()]
    x, *states = node.input
    w, r, b = (ctx.make_const(f"{node.name}_{key}", value).output[0] for key, value in weights.items())
    kind = _OPERATORS[type(layer)]
    attributes: Mapping[str, Any] = {"hidden_size": layer.units, "activations": _activations(layer)}
    if kind == "GRU":
        attributes = {**attributes, "linear_before_reset": int(layer.cell.reset_after)}
    shapes, dtypes, outputs = node.output_shapes, node.output_dtypes, list(node.output)
    ctx.remove_node(node.name)
    ctx.make_node(
        kind, [x, w, r, b, "", *states], name=node.name, attr=attributes, outputs=outputs, shapes=shapes, dtypes=dtypes
    )


def _weights(layer: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Input weights, recurrent weights and biases as ONNX has them, whose order of an LSTM's gates is its own."""
    cell = layer.cell
    kernel, recurrent = (np.asarray(weight, np.float32) for weight in (cell.kernel, cell.recurrent_kernel))
    bias = np.zeros((2, kernel.shape[1]), np.float32)
    if cell.use_bias:
        given = np.asarray(cell.bias, np.float32)
        # A GRU that resets after the product has a bias for each product.
        bias[: 2 if given.ndim == 2 else 1] = given
    if isinstance(layer, keras.layers.LSTM):
        # Keras: input, forget, cell, output. ONNX: input, output, forget, cell.
        order = np.concatenate([np.arange(layer.units) + gate * layer.units for gate in (0, 3, 1, 2)])
        kernel, recurrent, bias = kernel[:, order], recurrent[:, order], bias[:, order]
    return {"w": kernel.T[None].copy(), "r": recurrent.T[None].copy(), "b": bias.reshape(1, -1)}
