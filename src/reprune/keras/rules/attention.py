"""Attention: two activations contracted with each other, and weighted sums over time."""

from __future__ import annotations

from math import prod
from typing import Any

import keras
import numpy as np

from reprune.keras.labels import NONE, Ids
from reprune.keras.tracer import Call, Traced, shadow

UNLIKE = "it is multiplied with values that cannot be made narrower"


def dot_attention(call: Call) -> Any:
    """Attention: scores are products of query and key (or sums of tanh), the context is a mean of values."""
    query, value, key = _query_value_key(call)
    read = contract(call, query, query.along(-1), key, key.along(-1))
    if not read:
        return call.pinned("their scores read units that cannot be silenced")
    return _context(call, query, value, key)


def additive_attention(call: Call) -> Any:
    """AdditiveAttention: scores are sums of tanh(query + key), times a scale per unit if there is one."""
    query, value, key = _query_value_key(call)
    layer = call.operation
    if layer.use_scale:
        labels = np.maximum(query.along(-1), key.along(-1))
        call.tracer.tie(query.along(-1), key.along(-1), call.site, UNLIKE)
        call.tracer.slot(layer.scale, 0, labels, "reads", call.site)
    elif not contract(call, query, query.along(-1), key, key.along(-1), both=True):
        return call.pinned("their scores read units that cannot be silenced")
    return _context(call, query, value, key)


def multi_head(call: Call) -> Any:
    """MultiHeadAttention: four products, each head by itself; what it returns may follow units it is added to."""
    layer = call.operation
    given = {**dict(zip(("query", "value", "key"), call.args, strict=False)), **call.kwargs}
    query, value = given["query"], given["value"]
    key = given.get("key")
    key = value if key is None else key
    if getattr(layer, "_use_gate", False) or getattr(layer, "_quantization_mode", None):
        return call.pinned("gated or quantised attention is not known")
    outputs = call.values()
    for tensor, part in ((query, layer.query_dense), (key, layer.key_dense), (value, layer.value_dense)):
        if tensor.shadow is not None and tensor.shadow.axis != len(tensor.shape) - 1:
            call.tracer.pin(tensor, call.site, "attention runs over its units as over time")
        labels = tensor.along(-1)
        call.tracer.slot(part.kernel, 0, labels, "reads", call.site)
        if (labels > NONE).any():
            bias = call.tracer.name(part.bias) if part.bias is not None else None
            call.tracer.records.consumers[call.tracer.name(part.kernel), 0] = bias
        inner = prod(part.kernel.shape[1:])
        call.tracer.product(prod(tensor.shape[:-1]), labels if labels.any() else len(labels), inner)
    projection = layer.output_dense
    made: Ids = np.zeros(outputs_width(outputs), dtype=np.int64)
    rank = len(projection.kernel.shape)
    if rank == 3:
        made = call.tracer.followers(projection.kernel, int(projection.kernel.shape[-1]))
        call.tracer.size(call, ("output_shape", 0), made)
        call.tracer.slot(projection.kernel, 2, made, "follows", call.site)
        if projection.bias is not None:
            call.tracer.slot(projection.bias, 0, made, "follows", call.site)
        call.tracer.product(prod(query.shape[:-1]), prod(projection.kernel.shape[:-1]), made)
    flat = keras.tree.flatten(outputs)
    traced = [Traced(flat[0], shadow(len(flat[0].shape) - 1, made)), *map(Traced, flat[1:])]
    return keras.tree.pack_sequence_as(outputs, traced)


def outputs_width(outputs: Any) -> int:
    """Width of the first output."""
    return int(keras.tree.flatten(outputs)[0].shape[-1])


def matmul(call: Call) -> Any:
    """A product of two activations: the axis between them is read directly, the others pass through."""
    tensors = call.tensors
    if len(tensors) != 2 or len(call.args) > 2:
        return call.pinned("it is multiplied with a constant or a weight outside any layer")
    first, second = tensors
    if min(len(first.shape), len(second.shape)) < 2:
        return call.pinned("it is multiplied with a vector")
    return contracted(call, first, len(first.shape) - 1, second, len(second.shape) - 2, batch=len(first.shape) - 2)


def dot_layer(call: Call) -> Any:
    """Dot: the same over the axes that the layer is given."""
    axes = call.operation.axes
    first, second = call.tensors
    one, other = (axes, axes) if isinstance(axes, int) else axes
    one, other = one % len(first.shape), other % len(second.shape)
    return contracted(call, first, one, second, other, batch=1)


def contracted(call: Call, first: Traced, one: int, second: Traced, other: int, batch: int) -> Any:
    """Contract axis `one` of `first` with axis `other` of `second`; the leading `batch` axes are common."""
    value = call.values()
    if first.shadow is None and second.shadow is None:
        return Traced(value)
    if not contract(call, first, first.along(one), second, second.along(other)):
        return call.pinned("they are multiplied with each other and cannot be silenced")
    free_first = [axis for axis in range(len(first.shape)) if axis != one]
    free_second = [axis for axis in range(batch, len(second.shape)) if axis != other]
    places = []
    if first.shadow is not None and first.shadow.axis in free_first:
        places.append((free_first.index(first.shadow.axis), first.shadow))
    if second.shadow is not None and second.shadow.axis in free_second:
        places.append((len(free_first) + free_second.index(second.shadow.axis), second.shadow))
    if not places:
        return Traced(value)
    if len(places) > 1:
        # A tensor is followed along one axis; outputs of a weight that follow no units can give way.
        places.sort(key=lambda place: not call.tracer.names_units(place[1].labels))
        call.tracer.pin_labels(places.pop()[1].labels, call.site, "its units meet others on two axes of a product")
    axis, passed = places[0]
    if axis >= len(value.shape):
        return call.pinned("its units end on an axis that is not known")
    return Traced(value, shadow(axis, passed.labels, passed.silent))


def contract(call: Call, first: Traced, one: Ids, second: Traced, other: Ids, both: bool = False) -> bool:
    """Couple the labels of a contracted axis and record that they are read directly; False if that cannot be silenced.

    Args:
        call: The call.
        first: A factor.
        one: Its labels along the contracted axis.
        second: The other factor.
        other: Its labels.
        both: Whether both must be silent, as in a sum, not just one, as in a product.
    """
    if not (one > NONE).any() and not (other > NONE).any():
        return True
    call.tracer.tie(one, other, call.site, UNLIKE)
    silent = [tensor.shadow is not None and tensor.shadow.silent for tensor in (first, second)]
    call.tracer.records.direct.append((np.maximum(one, other), call.site))
    return all(silent) if both else any(silent)


def _query_value_key(call: Call) -> tuple[Traced, Traced, Traced]:
    given = call.args[0] if call.args else call.kwargs["inputs"]
    query, value = given[0], given[1]
    return query, value, given[2] if len(given) > 2 else value


def _context(call: Call, query: Traced, value: Traced, key: Traced) -> Any:
    for tensor in (query, value, key):
        if tensor.shadow is not None and tensor.shadow.axis != len(tensor.shape) - 1:
            call.tracer.pin(tensor, call.site, "attention runs over its units as over time")
    outputs = call.values()
    pairs = query.shape[0] * query.shape[1] * value.shape[1]
    for tensor in (key, value):
        labels = tensor.along(-1)
        call.tracer.product(pairs, labels if labels.any() else len(labels))
    flat = keras.tree.flatten(outputs)
    labels = value.along(-1)
    silent = value.shadow is not None and value.shadow.silent
    traced = [Traced(flat[0], shadow(len(flat[0].shape) - 1, labels, silent)), *map(Traced, flat[1:])]
    return keras.tree.pack_sequence_as(outputs, traced)
