"""Operations that treat every element, or every unit, by itself."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from reprune.keras.tracing.rules.functions import is_elementwise, keeps_apart, keeps_zero
from reprune.keras.tracing.tracer import Call, Traced, shadow

NARROW = "it is combined with values that cannot be made narrower"
# Functions of two numbers that make something else than 0 of two zeros.
_NOT_OF_ZEROS = ("Equal", "GreaterEqual", "LessEqual", "LogicalXor", "Power", "Logaddexp")
# Reductions to which a zero adds nothing.
_ADDING_UP = ("Sum", "Any", "CountNonzero", "Norm")


def same(call: Call) -> Any:
    """Every element by itself, and 0 stays 0: dropout, masking, casts."""
    x = call.x
    return call.plain() if x.shadow is None else call.labelled(x.shadow.axis, x.shadow.labels, x.shadow.silent)


def unary(call: Call) -> Any:
    """A function of each element, asked for what it does with 0."""
    x = call.x
    if x.shadow is None and x.weight is None:
        return call.plain()
    function = call.operation
    apart = is_elementwise(function) if x.shadow is None else keeps_apart(function, len(x.shape), x.shadow.axis)
    if not apart:
        return call.pinned("the function mixes its units, or could not be tried out")
    if x.weight is not None and keeps_zero(function):
        return Traced(call.values(), x.shadow, x.weight, x.axes)
    x = call.one_each(x)
    if x.shadow is None:
        return call.plain()
    return call.labelled(x.shadow.axis, x.shadow.labels, x.shadow.silent and keeps_zero(function))


def softmax(call: Call) -> Any:
    """Softmax over other axes than that of the units."""
    x = call.x
    axes = getattr(call.operation, "axis", -1)
    if x.shadow is None:
        return call.plain()
    if x.shadow.axis in axes_of(axes, len(x.shape)):
        return call.pinned("a softmax runs over its units")
    return call.labelled(x.shadow.axis, x.shadow.labels, silent=False)


def combined(call: Call) -> Any:
    """Sum, product, maximum … of tensors of broadcast shapes: units at the same position go together."""
    value = call.values()
    rank = len(value.shape)
    operands = [leaf for leaf in keras.tree.flatten((call.args, call.kwargs)) if leaf is not None]
    leaves = [leaf for leaf in operands if hasattr(leaf, "shape")]
    if all(tensor.shadow is None for tensor in call.tensors):
        leaves = [call.one_each(leaf) if _is(leaf) else leaf for leaf in leaves]
    labelled = [leaf for leaf in leaves if _is(leaf) and leaf.shadow is not None]
    axes = {leaf.shadow.axis + rank - len(leaf.shape) for leaf in labelled if leaf.shadow is not None}
    if not labelled:
        return Traced(value)
    if len(axes) > 1:
        return call.pinned("its units meet others along another axis")
    axis = axes.pop()
    width = value.shape[axis]
    nobody = np.zeros(width, dtype=np.int64)
    whole = [leaf for leaf in labelled if leaf.shape[axis - rank] == width]
    for leaf in leaves:
        own = axis - (rank - len(leaf.shape))
        if own < 0 or (leaf.shape[own] == 1 and width > 1):
            continue
        if _is(leaf) and leaf.weight is not None and leaf.axes[own] is not None:
            for tensor in whole:
                call.tracer.slot(leaf.weight, leaf.axes[own], tensor.along(axis - rank), "follows", call.site)
            if leaf.shadow is None:
                continue
        named = leaf.along(own) if _is(leaf) else nobody
        for tensor in whole:
            if tensor is not leaf:
                call.tracer.tie(tensor.along(axis - rank), named, call.site, NARROW)
    # Where others name what these do not, what they name is pinned.
    labels = whole[0].along(axis - rank) if whole else nobody
    silences = [leaf.shadow is not None and leaf.shadow.silent if _is(leaf) else is_zero(leaf) for leaf in operands]
    kind = type(call.operation).__name__
    silent = any(silences) if kind == "Multiply" else all(silences) and kind not in _NOT_OF_ZEROS
    return Traced(value, shadow(axis, labels, silent))


def scaled(call: Call) -> Any:
    """Division: as a combination; a constant or a broadcast divisor leaves zeros alone."""
    out = combined(call)
    first = call.args[0] if call.args else None
    if isinstance(out, Traced) and out.shadow is not None and isinstance(first, Traced) and first.shadow is not None:
        return Traced(out.value, shadow(out.shadow.axis, out.shadow.labels, first.shadow.silent))
    return out


def channelwise(call: Call) -> Any:
    """Pooling and other windows over time or space, unit by unit."""
    x = call.x
    if x.shadow is None:
        return call.plain()
    channel = 1 if getattr(call.operation, "data_format", None) == "channels_first" else len(x.shape) - 1
    if x.shadow.axis != channel:
        return call.pinned("it pools over units")
    value = call.values()
    axis = 1 if channel == 1 and len(x.shape) > 2 else len(value.shape) - 1
    return Traced(value, shadow(axis, x.shadow.labels, x.shadow.silent))


def reduction(call: Call) -> Any:
    """Sum, mean, maximum … over axes that hold no units; a sum or a length over units reads them directly."""
    x = call.x
    if x.shadow is None:
        return call.plain()
    rank = len(x.shape)
    kind = type(call.operation).__name__
    axes = axes_of(getattr(call.operation, "axis", None), rank)
    keepdims = bool(getattr(call.operation, "keepdims", False))
    if x.shadow.axis in axes:
        vector = kind != "Norm" or (len(axes) == 1 and call.operation.ord in (None, 1, 2))
        if kind in _ADDING_UP and x.shadow.silent and vector:
            call.tracer.records.direct.append((x.shadow.labels, call.site))
            return call.plain()
        return call.pinned("it is reduced over its units")
    axis = x.shadow.axis - (0 if keepdims else sum(other < x.shadow.axis for other in axes))
    zero = kind != "Logsumexp" and not getattr(call.operation, "initial", None)
    return call.labelled(axis, x.shadow.labels, x.shadow.silent and zero)


def averaged(call: Call) -> Any:
    """The layer Average combines tensors, the operation reduces one."""
    if not hasattr(call.operation, "axis"):
        return combined(call)
    if any(weights.shadow is not None for weights in call.tensors[1:]):
        return call.pinned("its units weigh a mean")
    return reduction(call)


def running(call: Call) -> Any:
    """Running sums, sorting … along another axis than that of the units."""
    x = call.x
    if x.shadow is None:
        return call.plain()
    axis = getattr(call.operation, "axis", None)
    if axis is None or axis % len(x.shape) == x.shadow.axis:
        return call.pinned("it runs over its units as over time")
    return call.labelled(x.shadow.axis, x.shadow.labels, x.shadow.silent)


def masking(call: Call) -> Any:
    """Masking: reads whether all units of a step are 0."""
    x = call.x
    if x.shadow is None:
        return call.plain()
    if x.shadow.axis == len(x.shape) - 1:
        if call.operation.mask_value != 0 or not x.shadow.silent:
            return call.pinned("a mask is made from its units, which cannot be silenced")
        call.tracer.records.direct.append((x.shadow.labels, call.site))
    return call.labelled(x.shadow.axis, x.shadow.labels, x.shadow.silent)


def zeros(call: Call) -> Any:
    """Zeros of a written width, which follow the units that they are handed to."""
    layer = call.operation
    made = call.tracer.couplings.new(layer.sizes[-1])
    call.tracer.size(call, ("sizes", len(layer.sizes) - 1), made)
    return Traced(call.values(), shadow(len(layer.sizes), made))


def alike(call: Call) -> Any:
    """Zeros, or ones, as wide as the units, however many there are; of truth values, Keras makes masks."""
    x = call.x
    masks = str(getattr(call.operation, "dtype", None)) == "bool"
    if x.shadow is None or masks:
        return call.plain()
    return call.labelled(x.shadow.axis, x.shadow.labels, silent=type(call.operation).__name__ == "ZerosLike")


def axes_of(axis: Any, rank: int) -> list[int]:
    """Axes of a tensor that an option names, counted from the front; None stands for all."""
    if axis is None:
        return list(range(rank))
    return [int(one) % rank for one in keras.tree.flatten(axis)]


def is_zero(leaf: Any) -> bool:
    """Whether an argument of an operation is the number 0."""
    return isinstance(leaf, (int, float)) and leaf == 0


def _is(leaf: Any) -> bool:
    return isinstance(leaf, Traced)
