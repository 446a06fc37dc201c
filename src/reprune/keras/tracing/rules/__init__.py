"""What the trace knows of each layer and operation of Keras: one line each. Adding one takes its line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from reprune.core.layers import Pin, Site
from reprune.keras.tracing.configuration import is_cell, loose_weights, sublayers
from reprune.keras.tracing.rules import attention, einsums, elementwise, movement, recurrent, weights, written
from reprune.keras.tracing.rules.moved import moved
from reprune.keras.tracing.tracer import Call

Rule = Callable[[Call], Any]

# By class name; a layer and an operation of one name do the same.
_RULES: dict[Rule, str] = {
    recurrent.recurrent: "LSTM GRU SimpleRNN RNN ConvLSTM1D ConvLSTM2D ConvLSTM3D",
    recurrent.bidirectional: "Bidirectional RaggedBidirectional",
    recurrent.lone_cell: "LSTMCell GRUCell SimpleRNNCell StackedRNNCells",
    weights.dense: "Dense",
    einsums.einsum_dense: "EinsumDense",
    weights.convolution: "Conv1D Conv2D Conv3D",
    weights.transposed: "Conv1DTranspose Conv2DTranspose Conv3DTranspose",
    weights.depthwise: "DepthwiseConv1D DepthwiseConv2D",
    weights.separable: "SeparableConv1D SeparableConv2D",
    weights.embedding: "Embedding",
    weights.reversible: "ReversibleEmbedding",
    weights.held: "HeldWeight",
    weights.batch_normalization: "BatchNormalization",
    weights.layer_normalization: "LayerNormalization RMSNormalization",
    weights.group_normalization: "GroupNormalization",
    weights.unit_normalization: "UnitNormalization Normalize",
    weights.prelu: "PReLU",
    attention.dot_attention: "Attention",
    attention.additive_attention: "AdditiveAttention",
    attention.multi_head: "MultiHeadAttention GroupedQueryAttention",
    attention.matmul: "Matmul",
    attention.dot: "Dot",
    attention.tensordot: "Tensordot",
    attention.einsum: "Einsum",
    elementwise.same: (
        "Dropout AlphaDropout GaussianDropout GaussianNoise SpatialDropout1D SpatialDropout2D SpatialDropout3D "
        "Identity ActivityRegularization Cast SaturateCast Copy StopGradient ConvertToTensor InputLayer"
    ),
    elementwise.unary: (
        "Activation ReLU LeakyReLU ELU Relu Relu6 Sigmoid SparseSigmoid Softplus Softsign SoftShrink Silu Squareplus "
        "LogSigmoid LeakyRelu HardSigmoid HardSilu Elu Selu Gelu Celu TanhShrink HardTanh HardShrink Threshold Tanh "
        "Sin Cos Sinh Cosh Arctan Exp Expm1 Log Log1p Square Sqrt Rsqrt Reciprocal Absolute Abs Negative Sign Clip Erf "
        "Round Floor Ceil LogicalNot Isnan Isfinite NanToNum"
    ),
    elementwise.softmax: "Softmax LogSoftmax",
    elementwise.combined: (
        "Add Subtract Multiply Maximum Minimum Where Greater GreaterEqual Less LessEqual Equal NotEqual LogicalAnd "
        "LogicalOr LogicalXor Power Logaddexp"
    ),
    elementwise.averaged: "Average",
    elementwise.scaled: "Divide TrueDivide",
    elementwise.channelwise: (
        "MaxPooling1D MaxPooling2D MaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D GlobalMaxPooling1D "
        "GlobalMaxPooling2D GlobalMaxPooling3D GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D "
        "AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveMaxPooling1D AdaptiveMaxPooling2D MaxPool "
        "AveragePool"
    ),
    elementwise.reduction: (
        "Mean Sum Max Min Amax Amin Std Var Prod Logsumexp Any All CountNonzero Median Norm Argmax Argmin"
    ),
    elementwise.running: "Cumsum Cumprod Sort Diff",
    elementwise.masking: "Masking",
    elementwise.zeros: "BatchZeros",
    elementwise.alike: "ZerosLike OnesLike FullLike",
    movement.concatenate: "Concatenate Stack",
    movement.reshape: "Reshape",
    movement.sliced: "GetItem Take Slice Split Unstack",
    movement.taken_along: "TakeAlongAxis",
    movement.padded: "Pad",
    movement.repeated: "Tile Repeat Flip Roll BroadcastTo UpSampling1D UpSampling2D",
    movement.time_distributed: "TimeDistributed",
    moved: (
        "Flatten Permute RepeatVector Cropping1D Cropping2D ZeroPadding1D ZeroPadding2D Transpose ExpandDims Squeeze "
        "Swapaxes Moveaxis Ravel"
    ),
}
RULES: dict[str, Rule] = {name: rule for rule, names in _RULES.items() for name in names.split()}


def rule_of(operation: Any) -> Rule:
    """The rule for an operation: that of its class, if the class is Keras's own or only configures one of Keras's."""
    for kind in type(operation).__mro__:
        if kind.__module__.split(".")[0] in ("keras", "reprune"):
            return RULES.get(kind.__name__, unknown)
        if "call" in vars(kind) or "__call__" in vars(kind):
            return recurrent.lone_cell if is_cell(operation) else unknown
    return unknown


def unknown(call: Call) -> Any:
    """What nobody has described: it may do anything with what it reads."""
    operation = call.operation
    made = written.followed(call) if isinstance(operation, keras.layers.Layer) else None
    if made is not None:
        return made
    why, line = call.tracer.graph.closed.get(id(operation), ("", ""))
    followed = f"whose code cannot be followed{': ' * bool(why)}{why}"
    for layer in _inside(operation):
        for suffix, cell in recurrent.cells_of(layer):
            pin = Pin(Site(call.site.operation, line), f"it is inside a {type(operation).__name__}, {followed}")
            name = f"{call.path}/{layer.name}{suffix}"
            kind = recurrent.cell_kind(cell)
            call.tracer.refused[name] = (kind[0] if kind else "custom", recurrent.width(cell), pin)
    if isinstance(operation, keras.layers.Lambda):
        return call.pinned(f"a Lambda reads them, {followed}: use keras.ops in it", line)
    own = loose_weights(operation) if isinstance(operation, keras.layers.Layer) else []
    if own and not type(operation).__module__.startswith("keras."):
        return call.pinned(
            f"{type(operation).__name__} holds weights of its own ({', '.join(own)}), {followed}: use keras.ops in it, "
            "or make it of layers such as keras.layers.Dense",
            line,
        )
    if why:
        return call.pinned(f"it is read by a {type(operation).__name__}, {followed}", line)
    return call.pinned(f"what {type(operation).__name__} does with its units is not known")


def _inside(operation: Any) -> list[Any]:
    if not isinstance(operation, keras.layers.Layer):
        return []
    found = []
    for part in [*sublayers(operation)]:
        recurrent_part = isinstance(part, (keras.layers.RNN, keras.layers.Bidirectional)) or recurrent.cell_kind(part)
        found += [part] if recurrent_part else _inside(part)
    if isinstance(operation, (keras.layers.RNN, keras.layers.Bidirectional)):
        # A subclass of a recurrent layer with a `call` of its own is not to be trusted with its parts either.
        return found or [operation]
    return found
