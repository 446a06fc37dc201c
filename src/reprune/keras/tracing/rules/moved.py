"""Values moved about: the operation is run on their labels."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from reprune.keras.tracing.graph import array
from reprune.keras.tracing.labels import NONE, PADDING, Ids, Shadow
from reprune.keras.tracing.tracer import Call, Traced, shadow


def moved(call: Call) -> Any:
    """An operation that only moves values about: run on the labels themselves."""
    outputs = call.values()
    if len(call.tensors) == 1 and call.x.weight is not None and hasattr(outputs, "shape"):
        return _turned(call, outputs)
    if all(tensor.shadow is None for tensor in call.tensors):
        return keras.tree.map_structure(Traced, outputs)
    args, kwargs = keras.tree.map_structure(
        lambda leaf: _spread(leaf) if isinstance(leaf, Traced) else leaf, (call.args, call.kwargs)
    )
    labels = keras.tree.flatten(call.operation(*args, **kwargs))
    flat = [
        Traced(value, _gathered(call, array(grid).astype(np.int64) - 1))
        for value, grid in zip(keras.tree.flatten(outputs), labels, strict=True)
    ]
    return keras.tree.pack_sequence_as(outputs, flat)


def _turned(call: Call, value: Any) -> Traced:
    """A weight whose axes were moved about: where each of them comes from, by the steps between elements."""
    weight = call.x
    places = np.arange(int(np.prod(weight.shape))).reshape(weight.shape)
    args, kwargs = keras.tree.map_structure(
        lambda leaf: keras.ops.convert_to_tensor(places) if leaf is weight else leaf, (call.args, call.kwargs)
    )
    made = array(call.operation(*args, **kwargs))
    sources = zip(places.strides, weight.axes, weight.shape, strict=True)
    steps = {step // places.itemsize: axis for step, axis, length in sources if length > 1}
    axes = []
    for axis, length in enumerate(made.shape):
        # The same step everywhere: in the order of the weight, from its first place on if there are as many.
        taken = np.unique(np.diff(made, axis=axis))
        source = steps.get(int(taken[0])) if len(taken) == 1 else None
        same = source is not None and length == weight.weight.shape[source]
        axes.append(source if same else None)
    known = any(axis is not None for axis in axes)
    return Traced(value, weight=weight.weight if known else None, axes=tuple(axes))


def _spread(tensor: Traced) -> Any:
    """Labels of every element, plus one: what an operation pads with zeros is told from values that must stay."""
    grid = np.ones(tensor.shape, dtype=np.int32)
    if tensor.shadow is not None:
        shape = [1] * grid.ndim
        shape[tensor.shadow.axis] = -1
        grid = np.broadcast_to(tensor.shadow.labels.reshape(shape) + 1, grid.shape).astype(np.int32)
    return keras.ops.convert_to_tensor(np.ascontiguousarray(grid))


def _gathered(call: Call, grid: Ids) -> Shadow | None:
    """Labels of elements as labels along one axis: the one along which they vary most; others are coupled."""
    if not (grid > NONE).any():
        return None
    anchor = tuple(np.argwhere(grid > NONE)[0])
    variety = []
    for axis in range(grid.ndim):
        line = grid[(*anchor[:axis], slice(None), *anchor[axis + 1 :])]
        variety.append(len(np.unique(line[line > NONE])))
    # A line without variety (one unit, or a slice of one position) may lie along any axis of length one.
    axis = int(np.argmax(variety)) if max(variety) > 1 else grid.ndim - 1
    lines = np.unique(np.moveaxis(grid, axis, -1).reshape(-1, grid.shape[axis]), axis=0)
    first = lines[0]
    for line in lines[1:]:
        call.tracer.tie(first, line, call.site, "its units meet values that cannot be made narrower")
        first = np.where(first > NONE, first, np.where(line == NONE, NONE, np.maximum(first, line)))
    silent = all(tensor.shadow is None or tensor.shadow.silent for tensor in call.tensors)
    return shadow(axis, np.where(first == PADDING, NONE, first), silent)
