"""For export to LiteRT: Keras LSTMs as one `UNIDIRECTIONAL_SEQUENCE_LSTM`, and loops unrolled where they must be.

LiteRT's converter makes that operator of a function that carries Keras 2's mark of an LSTM. While a model is traced,
each layer here calls such a function in the place of its loop; where the operator's conditions do not hold, the
converter takes the function for what it computes.
"""

from __future__ import annotations

import copy
import uuid
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from reprune.keras.export.states import recurrent_layers

_STATE, _CELL, _HIDDEN = 18, 19, 4
"""Places in the operator's lists: of the states among its inputs, and of an output before it is projected."""


@contextmanager
def fused_lstms(model: Any) -> Iterator[list[str]]:
    """Within this context a model's LSTMs are marked where the operator can be used; gives the names of those."""
    marked: list[str] = []
    layers = [layer for layer in recurrent_layers(model) if _fusable(layer)]
    for layer in layers:
        # On the instance, and gone afterwards.
        object.__setattr__(layer, "inner_loop", _inner_loop(layer, marked))
    try:
        yield marked
    finally:
        for layer in layers:
            object.__delattr__(layer, "inner_loop")


@contextmanager
def unrolled(model: Any, fused: Collection[str]) -> Iterator[None]:
    """Within this context a model's recurrent layers are traced step by step, but for those of these names."""
    layers = [layer for layer in recurrent_layers(model) if not layer.unroll and layer.name not in fused]
    for layer in layers:
        layer.unroll = True
    try:
        yield
    finally:
        for layer in layers:
            layer.unroll = False


def mended(content: bytes, *, integers: bool) -> bytes:
    """A file as the converter should have written it.

    Args:
        content: The file, with LSTM operators.
        integers: Whether all of it is in integers.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    codes, kinds = [code.builtinCode for code in model.operatorCodes], schema.BuiltinOperator
    for graph in model.subgraphs:
        lstms = [o for o in graph.operators if codes[o.opcodeIndex] == kinds.UNIDIRECTIONAL_SEQUENCE_LSTM]
        _own_states(graph, lstms)
        if integers:
            again = schema.OperatorT()
            again.opcodeIndex = codes.index(kinds.QUANTIZE) if kinds.QUANTIZE in codes else None
            _one_scale(graph, lstms, again)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _own_states(graph: Any, lstms: Collection[Any]) -> None:
    """Let nothing else read the states of an LSTM operator.

    The converter takes zeros of one shape for one tensor, the operator writes its state into it, and a loop that should
    begin with zeros begins with that.
    """
    read = Counter(int(tensor) for operator in graph.operators for tensor in operator.inputs)
    for operator in lstms:
        for place in (_STATE, _CELL):
            held = operator.inputs[place]
            if read[held] > 1:
                graph.tensors.append(copy.copy(graph.tensors[held]))
                operator.inputs[place] = len(graph.tensors) - 1


def _one_scale(graph: Any, lstms: Collection[Any], requantise: Any) -> None:
    """Keep the state of each LSTM operator in the steps that its output is in.

    An LSTM's output is its state. Where outputs are concatenated, the converter gives them all one scale and leaves the
    states theirs: every step would then read other numbers than the one before it wrote. Here the operator keeps the
    scale of its own, and what reads it gets the numbers in the other one.
    """
    operators = []
    for operator in graph.operators:
        operators.append(operator)
        if not any(operator is lstm for lstm in lstms):
            continue
        (output,), own = operator.outputs, graph.tensors[operator.intermediates[_HIDDEN]].quantization
        graph.tensors[operator.inputs[_STATE]].quantization = own
        if _steps(own) == _steps(graph.tensors[output].quantization):
            continue
        # Its readers go on reading the tensor that they read, which the operator does not write any more.
        graph.tensors.append(copy.copy(graph.tensors[output]))
        graph.tensors[-1].quantization = own
        operator.outputs = [len(graph.tensors) - 1]
        again = copy.copy(requantise)
        again.inputs, again.outputs = operator.outputs, [output]
        operators.append(again)
    graph.operators = operators


def _steps(quantization: Any) -> tuple[list[float], list[int]]:
    return list(quantization.scale), list(quantization.zeroPoint)


def _fusable(layer: Any) -> bool:
    """Whether a layer computes what the operator does, and is left to its own loop by the user."""
    return (
        type(layer) is keras.layers.LSTM
        and layer.cell.activation is keras.activations.tanh
        and layer.cell.recurrent_activation is keras.activations.sigmoid
        and not layer.unroll
        and not layer.return_state
        and not layer.stateful
    )


def _inner_loop(layer: Any, marked: list[str]) -> Any:
    import tensorflow as tf

    original = layer.inner_loop

    def inner_loop(sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        masked = any(part is not None for part in keras.tree.flatten(mask))
        starts = [tf.get_static_value(state) for state in initial_state]
        # The operator starts from zeros, and knows no mask.
        if masked or any(start is None or start.any() for start in starts):
            return original(sequences, initial_state, mask, training=training)
        marked.append(layer.name)
        if layer.go_backwards:
            sequences = tf.reverse(sequences, [1])
        cell = layer.cell
        bias = cell.bias if cell.use_bias else tf.zeros([4 * layer.units])
        weights = [tf.convert_to_tensor(weight) for weight in (cell.kernel, cell.recurrent_kernel, bias)]
        mark = {
            "api_implements": f"lstm_{uuid.uuid4()}", "api_preferred_device": "CPU",
            "time_major": False, "go_backwards": False,
        }  # fmt: skip
        _, output, _, c, _ = tf.function(_lstm, experimental_attributes=mark)(sequences, *initial_state, *weights)
        output = tf.ensure_shape(output, (sequences.shape[0], sequences.shape[1], layer.units))
        # The last step of the output: the operator returns no states.
        last = output[:, -1]
        return last, output if layer.return_sequences else last[:, None], [last, c]

    return inner_loop


def _lstm(x: Any, h: Any, c: Any, kernel: Any, recurrent_kernel: Any, bias: Any) -> tuple[Any, ...]:
    """The five results of Keras 2's `standard_lstm`: last output, outputs, states, and a number that nobody reads."""
    import tensorflow as tf

    steps = tf.transpose(x, [1, 0, 2])
    count = tf.shape(steps)[0]

    def step(time: Any, h: Any, c: Any, outputs: Any) -> tuple[Any, ...]:
        gates = tf.matmul(steps[time], kernel) + tf.matmul(h, recurrent_kernel) + bias
        i, f, g, o = tf.split(gates, 4, axis=1)
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        h = tf.sigmoid(o) * tf.tanh(c)
        return time + 1, h, c, outputs.write(time, h)

    outputs = tf.TensorArray(tf.float32, size=count)
    _, h, c, outputs = tf.while_loop(lambda time, *_: time < count, step, (tf.constant(0), h, c, outputs))
    return h, tf.transpose(outputs.stack(), [1, 0, 2]), h, c, tf.constant(0.0)
