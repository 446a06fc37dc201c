"""Attention: two activations contracted with each other, and weighted sums over time."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import keras
import numpy as np

from reprune.keras.tracing.labels import NONE, Ids
from reprune.keras.tracing.rules.weights import ALTERED
from reprune.keras.tracing.tracer import Call, Traced, shadow

UNLIKE = "it is multiplied with values that cannot be made narrower"


def dot_attention(call: Call) -> Any:
    """Attention: scores are products of query and key (or sums of tanh), the context is a mean of values."""
    query, value, key = _query_value_key(call)
    sums = call.operation.score_mode == "concat"
    read = contract(call, query, query.along(-1), key, key.along(-1), both=sums)
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
    """MultiHeadAttention, GroupQueryAttention: products of each head by itself; queries that share a key go with it.

    What it returns may follow units it is added to. Grouped queries are given as many features as values,
    and return as many.
    """
    layer = call.operation
    given = {**dict(zip(("query", "value", "key"), call.args, strict=False)), **call.kwargs}
    query, value = given["query"], given["value"]
    key = given.get("key")
    key = value if key is None else key
    if getattr(layer, "_quantization_mode", None):
        return call.pinned(ALTERED)
    outputs = call.values()
    grouped = isinstance(layer, keras.layers.GroupQueryAttention)
    heads = call.tracer.begin(call, "attention", layer._key_dense.kernel, 1)
    queries = np.repeat(heads, layer.num_repeats) if grouped else heads
    call.tracer.size(call, ("num_key_value_heads" if grouped else "num_heads",), heads)
    if grouped:
        call.tracer.size(call, ("num_query_heads",), queries)
        call.tracer.tie(query.along(-1), value.along(-1), call.site, "its queries are as long as its values")
    parts = [(query, layer._query_dense, queries), (key, layer._key_dense, heads), (value, layer._value_dense, heads)]
    if hasattr(layer, "_gate_dense"):
        parts.append((query, layer._gate_dense, queries))
    for tensor, part, own in parts:
        if tensor.shadow is not None and tensor.shadow.axis != len(tensor.shape) - 1:
            call.tracer.pin(tensor, call.site, "attention runs over its units as over time")
        labels = tensor.along(-1)
        _consumer(call, part, labels)
        call.tracer.slot(part.kernel, 1, own, "own", call.site)
        call.tracer.slot(part.bias, 0, own, "own", call.site)
        rows, each = prod(tensor.shape[:-1]), part.kernel.shape[2]
        call.tracer.product(rows, labels, np.repeat(own, each))
    pairs = prod(query.shape[:-1]) * prod(key.shape[axis] for axis in getattr(layer, "attention_axes", (1,)))
    for part in (layer._key_dense, layer._value_dense):
        call.tracer.product(pairs, queries, part.kernel.shape[2])
    made = _merged(call, layer._output_dense, queries, query)
    flat = keras.tree.flatten(outputs)
    if len(flat) > 1:
        call.tracer.pin_labels(heads, call.site, "it returns the scores of each head")
    traced = [Traced(flat[0], shadow(len(flat[0].shape) - 1, made)), *map(Traced, flat[1:])]
    return keras.tree.pack_sequence_as(outputs, traced)


def _merged(call: Call, projection: Any, queries: Ids, query: Traced) -> Ids:
    """Labels of what the weight makes that merges the heads, along its last axis."""
    _consumer(call, projection, queries)
    if len(projection.kernel.shape) != 3:
        return np.zeros(projection.kernel.shape[-1], dtype=np.int64)
    made = call.tracer.begin(call, "linear", projection.kernel, 2)
    call.tracer.slot(projection.bias, 0, made, "own", call.site)
    call.tracer.product(prod(query.shape[:-1]), np.repeat(queries, projection.kernel.shape[1]), made)
    if not isinstance(call.operation, keras.layers.GroupQueryAttention):
        call.tracer.size(call, ("output_shape", 0), made)
    elif query.shadow is None:
        call.tracer.pin_labels(made, call.site, "it returns as many features as its query has, which stay")
    else:
        call.tracer.tie(made, query.along(-1), call.site, "it returns as many features as its query has")
    return made


def _consumer(call: Call, part: Any, labels: Ids) -> None:
    """Record that a part of attention reads units along the first axis of its kernel."""
    call.tracer.slot(part.kernel, 0, labels, "reads", call.site)
    if (labels > NONE).any():
        bias = call.tracer.name(part.bias) if part.bias is not None else None
        call.tracer.records.consumers[call.tracer.name(part.kernel), 0] = bias


def matmul(call: Call) -> Any:
    """A product of two activations: the axis between them is read directly, the others pass through."""
    tensors = call.tensors
    if len(tensors) != 2 or len(call.args) > 2:
        return call.pinned("it is multiplied with a constant or a weight outside any layer")
    ranks = [len(tensor.shape) for tensor in tensors]
    if ranks[1] == 1 and tensors[1].weight is not None:
        rows = [f"row {index}" for index in range(ranks[0] - 1)]
        return contracted(call, [*rows, "inner"], ["inner"], rows)
    if min(ranks) < 2:
        return call.pinned("it is multiplied with a vector")
    common = [f"batch {index}" for index in range(max(ranks) - 2)]
    first, second = ([*common[len(common) - rank + 2 :]] for rank in ranks)
    return contracted(call, [*first, "row", "inner"], [*second, "inner", "column"], [*common, "row", "column"])


def dot(call: Call) -> Any:
    """The layer Dot, a product over given axes of each sequence, and the operation, over the last one and the last but
    one of all."""
    if len(call.tensors) != 2:
        return call.pinned("it is multiplied with a constant or a weight outside any layer")
    ranks = [len(tensor.shape) for tensor in call.tensors]
    layer = isinstance(call.operation, keras.layers.Layer)
    axes = call.operation.axes if layer else (-1, -2)
    one, other = (axes, axes) if isinstance(axes, int) else axes
    vector = ranks[1] == 1 and call.tensors[1].weight is not None
    if vector:
        other = -1
    if min(ranks) < 2 and not vector:
        return call.pinned("it is multiplied with a vector")
    loud = any(tensor.shadow is not None and not tensor.shadow.silent for tensor in call.tensors)
    if layer and call.operation.normalize and loud:
        return call.pinned("their length reads units that cannot be silenced")
    letters = []
    for name, rank, axis in (("first", ranks[0], one), ("second", ranks[1], other)):
        own = [f"{name} {index}" for index in range(rank)]
        own[axis] = "inner"
        if layer:
            own[0] = "sequence"
        letters.append(own)
    first, second = letters
    return contracted(call, first, second, [x for x in dict.fromkeys([*first, *second]) if x != "inner"])


def tensordot(call: Call) -> Any:
    """A product over given axes."""
    if len(call.tensors) != 2:
        return call.pinned("it is multiplied with a constant")
    ranks = [len(tensor.shape) for tensor in call.tensors]
    axes = call.operation.axes
    if isinstance(axes, int):
        pairs = [(ranks[0] - axes + index, index) for index in range(axes)]
    else:
        pairs = [(a % ranks[0], b % ranks[1]) for a, b in zip(*axes, strict=True)]
    first, second = ([f"{name} {index}" for index in range(rank)] for name, rank in zip("ab", ranks, strict=True))
    for number, (a, b) in enumerate(pairs):
        first[a] = second[b] = f"inner {number}"
    return contracted(call, first, second, [x for x in [*first, *second] if not x.startswith("inner")])


def einsum(call: Call) -> Any:
    """Sums of products named by letters."""
    found = [leaf for leaf in keras.tree.flatten((call.args, call.kwargs)) if hasattr(leaf, "shape")]
    if len(found) != len(call.tensors) or len(found) > 2:
        return call.pinned("it is multiplied with a constant, or with several tensors")
    text = str(call.operation.subscripts).replace(" ", "")
    read, arrow, made = text.partition("->")
    parts = read.split(",")
    if "." in text or not arrow or any(len(set(part)) < len(part) for part in [*parts, made]):
        return call.pinned(f"{text!r} is not followed: write all letters out, each once, and the result after '->'")
    return contracted(call, list(parts[0]), list(parts[-1]) if len(parts) > 1 else None, list(made))


def contracted(call: Call, first: Sequence[str], second: Sequence[str] | None, out: Sequence[str]) -> Any:
    """A sum of products of one or two tensors whose axes are named; axes that are not in `out` are summed over.

    Units on an axis that stays pass through, with those of the other tensor if it has the axis, too.
    """
    value = call.values()
    tensors = call.tensors
    axes = [first] if second is None else [first, second]
    passed: list[tuple[int, Ids, bool]] = []
    read: dict[str, Ids] = {}
    held = [own[t.shadow.axis] for t, own in zip(tensors, axes, strict=True) if t.shadow is not None]
    if call.tracer.times:
        passed += _made_by(call, tensors, axes, out)
    for letter in dict.fromkeys(held):
        factors = [(t, t.along(own.index(letter))) for t, own in zip(tensors, axes, strict=True) if letter in own]
        # An axis of length one is broadcast along the other's.
        length = max(len(labels) for _, labels in factors)
        factors = [(tensor, labels) for tensor, labels in factors if len(labels) == length]
        labels = read[letter] = np.maximum(factors[0][1], factors[-1][1])
        weights = [tensor for tensor, _ in factors if tensor.weight is not None]
        if weights:
            names = axes[tensors.index(weights[0])]
            if not _read_by(call, weights[0], names.index(letter), labels, reads=letter not in out):
                return call.pinned("it is multiplied with a weight whose axes were mixed before")
            if letter not in out:
                continue
        else:
            call.tracer.tie(factors[0][1], factors[-1][1], call.site, UNLIKE)
        silent = any(t.shadow is not None and t.shadow.silent for t, own in factors if (own > NONE).any())
        if letter in out:
            passed.append((out.index(letter), labels, silent))
        elif silent:
            call.tracer.records.direct.append((labels, call.site))
        else:
            return call.pinned("they are multiplied with each other and cannot be silenced")
    for tensor, own in zip(tensors, axes, strict=True):
        if id(tensor.weight) in call.tracer.uncounted:
            others = {
                letter: size
                for other, names in zip(tensors, axes, strict=True)
                if other is not tensor
                for letter, size in zip(names, other.shape, strict=True)
                if letter not in own
            }
            known = {letter: labels for letter, labels in read.items() if letter in own}
            sizes = [known.get(letter, size) for letter, size in zip(own, tensor.shape, strict=True)]
            call.tracer.product(prod(others.values()), *sizes)
    if len(passed) > 1:
        # A tensor is followed along one axis; outputs of a weight that follow no units can give way.
        passed.sort(key=lambda place: not call.tracer.names_units(place[1]))
        call.tracer.pin_labels(passed.pop()[1], call.site, "its units meet others on two axes of a product")
    return Traced(value, shadow(*passed[0]) if passed else None)


def _made_by(
    call: Call, tensors: Sequence[Traced], axes: Sequence[Sequence[str]], out: Sequence[str]
) -> list[tuple[int, Ids, bool]]:
    """What weights of a cell make: the axes of a product that they alone have, with their labels."""
    made = []
    for tensor, own in zip(tensors, axes, strict=True):
        others = [letter for other in axes if other is not own for letter in other]
        for axis, letter in enumerate(own):
            source = None if tensor.weight is None or tensor.shadow is not None else tensor.axes[axis]
            if source is not None and letter in out and letter not in others:
                made.append((out.index(letter), call.tracer.columns(call, tensor.weight, source), True))
    return made


def _read_by(call: Call, weight: Traced, axis: int, labels: Ids, *, reads: bool) -> bool:
    """Note which axis of a written layer's weight knows these units; False where it cannot be told."""
    source = weight.axes[axis]
    if source is None:
        return False
    call.tracer.slot(weight.weight, source, labels, "reads" if reads else "follows", call.site)
    return True


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
        call.tracer.product(pairs, tensor.along(-1))
    flat = keras.tree.flatten(outputs)
    labels = value.along(-1)
    silent = value.shadow is not None and value.shadow.silent
    traced = [Traced(flat[0], shadow(len(flat[0].shape) - 1, labels, silent)), *map(Traced, flat[1:])]
    return keras.tree.pack_sequence_as(outputs, traced)
