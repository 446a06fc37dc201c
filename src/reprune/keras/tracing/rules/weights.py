"""Layers with weights: consumers of units, and makers of values that may have to follow units they are added to."""

from __future__ import annotations

from math import prod
from typing import Any

import keras
import numpy as np

from reprune.keras.tracing.labels import NONE, Ids
from reprune.keras.tracing.rules.elementwise import axes_of
from reprune.keras.tracing.rules.functions import is_elementwise, keeps_apart, keeps_zero
from reprune.keras.tracing.tracer import Call, Traced, shadow

# What a layer calls the number of its outputs.
_WIDTHS = ("units", "filters", "output_dim")
ALTERED = "the layer is quantised or holds a low-rank update: undo that first"


def dense(call: Call) -> Any:
    """Dense: reads the last axis."""
    layer, x = call.operation, call.x
    if _altered(layer):
        return call.pinned(ALTERED)
    value = call.values()
    rank = len(x.shape)
    free = x.shadow is not None and x.shadow.axis != rank - 1
    read = x.along(-1)
    _reads(call, layer, layer.kernel, 0, read)
    rows = prod(x.shape[:-1])
    made = _made(call, "linear", layer, layer.kernel, 1)
    if free:
        # Units on another axis pass through, along with the layer's own outputs: only those are followed.
        assert x.shadow is not None
        call.tracer.pin_labels(made, call.site, "units pass through on another axis, and are followed instead")
        call.tracer.product(rows / x.shape[x.shadow.axis], x.shadow.labels, x.shape[-1], layer.kernel.shape[1])
        if not keeps_apart(layer.activation, rank, x.shadow.axis):
            call.tracer.pin(x, call.site, "its activation mixes the units")
        zero = x.shadow.silent and not layer.use_bias and keeps_zero(layer.activation)
        return Traced(value, shadow(x.shadow.axis, x.shadow.labels, zero))
    call.tracer.product(rows, read, made)
    return Traced(value, shadow(rank - 1, made, keeps_zero(layer.activation)))


def convolution(call: Call) -> Any:
    """Conv1D, Conv2D, …: reads the channels."""
    layer, x = call.operation, call.x
    if _altered(layer):
        return call.pinned(ALTERED)
    if layer.groups > 1:
        return _grouped(call)
    return _windows(call, layer, x, layer.kernel, -2, -1, rows_of_input=False)


def _grouped(call: Call) -> Any:
    """A convolution in groups keeps whole groups: the channels that a group reads and those that it makes go together.

    A group's kernel reads as many channels as before, so that it is no consumer that could take anything over.
    """
    layer, x = call.operation, call.x
    value = call.values()
    channel = _channel(layer, len(x.shape))
    rows = prod(value.shape) / value.shape[channel] * prod(layer.kernel.shape[:-1])
    if x.shadow is None:
        call.tracer.product(rows, layer.filters)
        return Traced(value)
    if x.shadow.axis != channel:
        return call.pinned("a convolution runs over its units as over time or space")
    first = _whole_groups(call, x.shadow.labels, layer.groups)
    if first is None:
        return call.plain()
    made = np.repeat(first, layer.filters // layer.groups)
    for weight in (layer.kernel, layer.bias if layer.use_bias else None):
        call.tracer.slot(weight, -1, made, "follows", call.site)
    call.tracer.size(call, ("groups",), first)
    call.tracer.size(call, ("filters",), made)
    if not is_elementwise(layer.activation):
        call.tracer.pin_labels(made, call.site, "its activation mixes the units")
    call.tracer.product(rows, made)
    return Traced(value, shadow(channel, made, keeps_zero(layer.activation)))


def _whole_groups(call: Call, labels: Ids, groups: int) -> Ids | None:
    """The first label of each group of channels, which go together from here on; None where they are pinned."""
    blocks = labels.reshape(groups, -1)
    if (labels == NONE).any() or (blocks.shape[1] > 1 and call.tracer.names_units(labels)):
        call.tracer.pin_labels(labels, call.site, f"its units are cut into {groups} groups")
        return None
    call.tracer.couplings.union(np.repeat(blocks[:, 0], blocks.shape[1]), labels)
    return blocks[:, 0]


def transposed(call: Call) -> Any:
    """Conv1DTranspose, …: reads the channels."""
    layer = call.operation
    return _windows(call, layer, call.x, layer.kernel, -1, -2, rows_of_input=True)


def depthwise(call: Call) -> Any:
    """DepthwiseConv1D, …: every channel by itself."""
    layer, x = call.operation, call.x
    value = call.values()
    channel = _channel(layer, len(x.shape))
    if not is_elementwise(layer.activation) or (x.shadow is not None and x.shadow.axis != channel):
        return call.pinned("the convolution mixes its units")
    labels = x.along(channel)
    call.tracer.slot(layer.kernel, -2, labels, "follows", call.site)
    made = np.repeat(labels, layer.depth_multiplier)
    if layer.use_bias:
        call.tracer.slot(layer.bias, 0, made, "follows", call.site)
    rows = prod(value.shape) / value.shape[channel] * prod(layer.kernel.shape[:-2])
    call.tracer.product(rows, labels, layer.depth_multiplier)
    return Traced(value, shadow(channel, made, keeps_zero(layer.activation)))


def separable(call: Call) -> Any:
    """SeparableConv1D, …: every channel by itself, then a product."""
    layer, x = call.operation, call.x
    value = call.values()
    channel = _channel(layer, len(x.shape))
    if x.shadow is not None and x.shadow.axis != channel:
        return call.pinned("the convolution mixes its units")
    labels = x.along(channel)
    call.tracer.slot(layer.depthwise_kernel, -2, labels, "follows", call.site)
    between = np.repeat(labels, layer.depth_multiplier)
    _reads(call, layer, layer.pointwise_kernel, -2, between)
    made = _made(call, "convolution", layer, layer.pointwise_kernel, -1)
    rows = prod(value.shape) / value.shape[channel]
    call.tracer.product(rows * prod(layer.depthwise_kernel.shape[:-2]), labels, layer.depth_multiplier)
    call.tracer.product(rows, between, made)
    return Traced(value, shadow(channel, made, keeps_zero(layer.activation)))


def embedding(call: Call) -> Any:
    """Embedding: makes values, reads none."""
    layer = call.operation
    if any(tensor.shadow is not None for tensor in call.tensors):
        return call.pinned("its units are used as indices")
    value = call.values()
    if _altered(layer):
        return Traced(value)
    return Traced(value, shadow(len(value.shape) - 1, _made(call, "embedding", layer, layer.embeddings, 1)))


def held(call: Call) -> Any:
    """A weight of another layer, for code that computes with it (tied embeddings)."""
    variable = call.operation.variable
    if not call.tracer.knows(variable):
        return Traced(call.values())
    call.tracer.uncounted.add(id(variable))
    return Traced(variable, weight=variable, axes=tuple(range(len(variable.shape))))


def reversible(call: Call) -> Any:
    """ReversibleEmbedding: an embedding, or, called in reverse, a product with the same weight or one of its own."""
    layer, x = call.operation, call.x
    if not call.kwargs.get("reverse", call.args[1] if len(call.args) > 1 else False):
        return embedding(call)
    if _altered(layer):
        return call.pinned(ALTERED)
    if x.shadow is not None and x.shadow.axis != len(x.shape) - 1:
        return call.pinned("a product runs over other axes than that of its units")
    weight, axis = (layer.embeddings, 1) if layer.tie_weights else (layer.reverse_embeddings, 0)
    call.tracer.slot(weight, axis, x.along(-1), "reads", call.site)
    if x.shadow is not None:
        call.tracer.size(call, ("output_dim",), x.along(-1))
    call.tracer.product(prod(x.shape[:-1]), x.along(-1), layer.input_dim)
    return call.plain()


def batch_normalization(call: Call) -> Any:
    """BatchNormalization: four numbers per unit."""
    layer, x = call.operation, call.x
    if x.shadow is None:
        return call.plain()
    labels = x.along(layer.axis)
    weights = [layer.gamma if layer.scale else None, layer.beta if layer.center else None]
    for weight in (*weights, layer.moving_mean, layer.moving_variance):
        call.tracer.slot(weight, 0, labels, "follows", call.site)
    return call.labelled(x.shadow.axis, x.shadow.labels, silent=bool(layer.scale and (labels > NONE).any()))


def layer_normalization(call: Call) -> Any:
    """LayerNormalization, RMSNormalization: mix the units, so that removing some is not exact."""
    layer, x = call.operation, call.x
    if x.shadow is None:
        return call.plain()
    axes = axes_of(layer.axis, len(x.shape))
    gain = getattr(layer, "gamma", None) if hasattr(layer, "gamma") else getattr(layer, "scale", None)
    shift = getattr(layer, "beta", None)
    if x.shadow.axis in axes:
        place = axes.index(x.shadow.axis)
        for weight in (gain, shift):
            if weight is not None:
                call.tracer.slot(weight, place, x.shadow.labels, "follows", call.site)
        call.tracer.records.approximate.append((x.shadow.labels, call.site))
        return call.labelled(x.shadow.axis, x.shadow.labels, silent=gain is not None)
    return call.labelled(x.shadow.axis, x.shadow.labels, silent=x.shadow.silent and shift is None)


def group_normalization(call: Call) -> Any:
    """GroupNormalization: one group mixes the units, one for each channel is exact; others go as a whole."""
    layer, x = call.operation, call.x
    if x.shadow is None:
        return call.plain()
    if x.shadow.axis != layer.axis % len(x.shape):
        return call.pinned("a mean over the groups of other channels runs over its units")
    labels = x.shadow.labels
    if layer.groups == 1:
        call.tracer.records.approximate.append((labels, call.site))
    else:
        first = _whole_groups(call, labels, layer.groups)
        if first is None:
            return call.plain()
        call.tracer.size(call, ("groups",), first)
    for weight in (layer.gamma if layer.scale else None, layer.beta if layer.center else None):
        call.tracer.slot(weight, 0, labels, "follows", call.site)
    return call.labelled(x.shadow.axis, labels, silent=bool(layer.scale) or x.shadow.silent)


def unit_normalization(call: Call) -> Any:
    """UnitNormalization, normalize: divide by a length that reads the units directly; exact once they are zero."""
    x = call.x
    if x.shadow is None:
        return call.plain()
    if x.shadow.axis in axes_of(call.operation.axis, len(x.shape)):
        if not x.shadow.silent:
            return call.pinned("their length reads units that cannot be silenced")
        call.tracer.records.direct.append((x.shadow.labels, call.site))
    return call.labelled(x.shadow.axis, x.shadow.labels, x.shadow.silent)


def prelu(call: Call) -> Any:
    """PReLU: a slope per position."""
    layer, x = call.operation, call.x
    if x.shadow is None:
        return call.plain()
    axis = x.shadow.axis - 1
    if layer.alpha.shape[axis] > 1:
        call.tracer.slot(layer.alpha, axis, x.shadow.labels, "follows", call.site)
    return call.labelled(x.shadow.axis, x.shadow.labels, x.shadow.silent)


def _windows(call: Call, layer: Any, x: Traced, kernel: Any, read: int, make: int, rows_of_input: bool) -> Any:
    channel = _channel(layer, len(x.shape))
    if x.shadow is not None and x.shadow.axis != channel:
        return call.pinned("a convolution runs over its units as over time or space")
    value = call.values()
    labels = x.along(channel)
    # With a stride, the outputs of a transposed convolution have different taps: no bias fits all of them.
    spread = rows_of_input and any(step > 1 for step in keras.tree.flatten(layer.strides))
    _reads(call, layer, kernel, read, labels, bias=not spread)
    made = _made(call, "convolution", layer, kernel, make)
    shape = x.shape if rows_of_input else tuple(value.shape)
    rows = prod(shape) / shape[channel] * prod(kernel.shape[:-2])
    call.tracer.product(rows, labels, made)
    return Traced(value, shadow(channel, made, keeps_zero(layer.activation)))


def _reads(call: Call, layer: Any, weight: Any, axis: int, labels: Ids, *, bias: bool = True) -> None:
    """Record a consumer; unlabelled inputs too, for another call of the layer may bring units."""
    call.tracer.slot(weight, axis, labels, "reads", call.site)
    if (labels > NONE).any():
        taker = call.tracer.name(layer.bias) if layer.use_bias and bias else None
        call.tracer.records.consumers[call.tracer.name(weight), axis % len(weight.shape)] = taker


def _made(call: Call, kind: str, layer: Any, weight: Any, axis: int) -> Ids:
    """Labels of what a layer makes; pinned when its activation mixes them."""
    made = call.tracer.begin(call, kind, weight, axis)
    call.tracer.size(call, (next(name for name in _WIDTHS if hasattr(layer, name)),), made)
    if getattr(layer, "use_bias", False):
        call.tracer.slot(layer.bias, 0, made, "own", call.site)
    activation = getattr(layer, "activation", None)
    if not is_elementwise(activation):
        title = getattr(activation, "__name__", type(activation).__name__)
        call.tracer.pin_labels(made, call.site, f"its activation {title} mixes the units")
    return made


def _channel(layer: Any, rank: int) -> int:
    return 1 if layer.data_format == "channels_first" else rank - 1


def _altered(layer: Any) -> bool:
    return bool(getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None))
