"""Sums and the like where an index says what goes where: over neighbours in a graph, over segments, into a buffer."""

from __future__ import annotations

import torch

from reprune.torch.tracing.labels import compact, varies
from reprune.torch.tracing.rules.movement import move, shared
from reprune.torch.tracing.rules.op import Labels, Op


def accumulate(op: Op) -> Labels:
    """`scatter_add(target, dim, index, source)` and its kin: what meets at a place must be the same unit."""
    if op.name == "scatter" and "reduce" not in op.kwargs:
        moved: Labels = move(0, 3)(op)
        return moved
    target, dim, source = op.args[0], op.args[1] % max(op.args[0].ndim, 1), op.args[3]
    units = op.tracer.units(source) if isinstance(source, torch.Tensor) else None
    held = op.tracer.units(target)
    if any(found is not None and found.ndim and varies(found, dim) for found in (units, held)):
        op.pin(f"'{op.name}' puts entries together along the axis of its units")
        return None
    if units is None or not units.ndim:
        return held
    for d in range(units.ndim):
        if d == dim or units.size(d) != target.size(d):
            if varies(units, d):
                op.pin(f"'{op.name}' takes only some of its units")
                return None
            units = compact(units).amax(d, keepdim=True)
    units = units.expand(op.out_tensor.shape)
    return units if held is None else op.tracer.couple(held, units)


def index_put(op: Op) -> Labels:
    """`target[index] = values`, or `+=`, where what meets at a place must be the same unit."""
    if not op.arg(3, "accumulate", False):
        moved: Labels = move(0, 2)(op)
        return moved
    values, held = op.tracer.units(op.args[2]), op.tracer.units(op.args[0])
    if values is None:
        return held
    units = shared(
        op, values, lambda found: op.func(torch.zeros_like(op.args[0], dtype=found.dtype), op.args[1], found, True)
    )
    return units if units is None or held is None else op.tracer.couple(held, units)


def segments(op: Op) -> Labels:
    """`segment_reduce` puts entries together along one axis."""
    units, axis = op.tracer.units(op.args[0]), op.kwargs.get("axis", 0)
    if units is not None and varies(units, axis):
        op.pin(f"'{op.name}' puts entries together along the axis of its units")
        return None
    return None if units is None else compact(units).amax(axis, keepdim=True)
