"""Operations that move values about: they are run on the labels themselves."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from reprune.keras.tracing.labels import NONE
from reprune.keras.tracing.rules.elementwise import is_zero
from reprune.keras.tracing.rules.moved import moved
from reprune.keras.tracing.tracer import Call, Traced, shadow

CUT = "units are taken by a position that is written into the code"


def concatenate(call: Call) -> Any:
    """Concatenate and Stack: side by side along the axis of the units, or one above the other, which couples them."""
    value = call.values()
    tensors = call.tensors
    if all(tensor.shadow is None for tensor in tensors):
        return Traced(value)
    stacked = type(call.operation).__name__ == "Stack"
    axis = call.operation.axis % len(value.shape)
    labelled = [tensor for tensor in tensors if tensor.shadow is not None]
    unit_axes = {tensor.shadow.axis for tensor in labelled if tensor.shadow is not None}
    if len(unit_axes) > 1:
        return call.pinned("its units meet others along another axis")
    own = unit_axes.pop()
    silent = all(tensor.shadow is not None and tensor.shadow.silent for tensor in labelled)
    if own == axis and not stacked:
        return Traced(value, shadow(axis, np.concatenate([tensor.along(axis) for tensor in tensors]), silent))
    first = labelled[0].along(own)
    for tensor in tensors:
        call.tracer.tie(first, tensor.along(own), call.site, "it is stacked with values that cannot be made narrower")
    return Traced(value, shadow(own + (stacked and own >= axis), first, silent))


def reshape(call: Call) -> Any:
    """Reshape: as a movement; a written size that counts units becomes a size of the pruned model."""
    out = moved(call)
    if isinstance(out, Traced) and out.shadow is not None:
        attribute = "target_shape" if hasattr(call.operation, "target_shape") else "newshape"
        written = tuple(getattr(call.operation, attribute))
        # A layer's shape leaves the batch out, an operation's has it.
        place = out.shadow.axis - (attribute == "target_shape")
        if 0 <= place < len(written) and written[place] not in (-1, None):
            call.tracer.size(call, (attribute, place), out.shadow.labels)
    return out


def sliced(call: Call) -> Any:
    """Indexing, splitting: over time and batch as one likes; units must be taken whole, or in equal parts."""
    out = moved(call)
    if _in_equal_parts(call):
        first, *others = [part.along(call.operation.axis) for part in out]
        for labels in others:
            call.tracer.tie(first, labels, call.site, "it is split into parts of one size, of which others stay")
        return out
    if call.tracer.times:
        # The positions are computed anew in a smaller cell: right, where they take the units of a layer whole.
        for part in keras.tree.flatten(out):
            if part.shadow is not None:
                call.tracer.records.cuts.append((part.shadow.labels, call.site))
        return out
    for tensor in call.tensors:
        if tensor.shadow is None:
            continue
        taken = [leaf.shadow.labels for leaf in keras.tree.flatten(out) if leaf.shadow is not None]
        if not taken or any(set(_named(labels)) != set(_named(tensor.shadow.labels)) for labels in taken):
            return call.pinned(CUT)
    return out


def _in_equal_parts(call: Call) -> bool:
    """Whether an axis of units is split into so many parts, such as `[h, c]` in one tensor."""
    operation, x = call.operation, call.x
    parts = getattr(operation, "indices_or_sections", None)
    return isinstance(parts, int) and x.shadow is not None and operation.axis % len(x.shape) == x.shadow.axis


def taken_along(call: Call) -> Any:
    """Values at positions along another axis than that of the units, which are the same for all units."""
    x, *others = call.tensors
    if any(tensor.shadow is not None for tensor in others):
        return call.pinned("its units are used as indices")
    if x.shadow is None:
        return call.plain()
    axis = call.operation.axis
    if axis is None or axis % len(x.shape) == x.shadow.axis:
        return call.pinned(CUT)
    return call.labelled(x.shadow.axis, x.shadow.labels, x.shadow.silent)


def padded(call: Call) -> Any:
    """Pad, on other axes than that of the units."""
    x = call.x
    value = call.values()
    if x.shadow is None:
        return Traced(value)
    if value.shape[x.shadow.axis] != x.shape[x.shadow.axis]:
        return call.pinned("values are put beside its units by a width that is written into the code")
    beside = [leaf for leaf in keras.tree.flatten((call.args, call.kwargs)) if leaf is not x and leaf is not None]
    return Traced(value, shadow(x.shadow.axis, x.shadow.labels, x.shadow.silent and all(map(is_zero, beside))))


def repeated(call: Call) -> Any:
    """Tile, Repeat, Flip … over other axes than that of the units."""
    out = moved(call)
    before, after = call.x.shadow, out.shadow if isinstance(out, Traced) else None
    if before is not None and (after is None or not np.array_equal(before.labels, after.labels)):
        return call.pinned("its units are repeated or reordered")
    return out


def _named(labels: Any) -> list[int]:
    return [label for label in labels.tolist() if label > NONE]


def time_distributed(call: Call) -> Any:
    """TimeDistributed: the layer inside, with time folded into the batch."""
    x = call.x
    inner = call.operation.layer
    if x.shadow is not None and x.shadow.axis < 2:
        return call.pinned("a layer runs over its units as over time")
    steps = x.shape[:2]
    folded = None if x.shadow is None else shadow(x.shadow.axis - 1, x.shadow.labels, x.shadow.silent)
    flat = Traced(keras.ops.reshape(x.value, (-1, *x.shape[2:])), folded)
    outputs = call.tracer.call(inner, flat)

    def unfold(part: Traced) -> Traced:
        value = keras.ops.reshape(part.value, (*steps, *part.shape[1:]))
        if part.shadow is None:
            return Traced(value)
        return Traced(value, shadow(part.shadow.axis + 1, part.shadow.labels, part.shadow.silent))

    return keras.tree.map_structure(unfold, outputs)
