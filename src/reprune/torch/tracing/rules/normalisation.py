"""Normalisations."""

from __future__ import annotations

import torch

from reprune.torch.tracing.labels import NONE, compact, unit_ids, varies
from reprune.torch.tracing.location import here
from reprune.torch.tracing.rules.elementwise import follow, unknown
from reprune.torch.tracing.rules.op import Labels, Op


def layer_norm(op: Op) -> Labels:
    """Statistics over the units themselves: sliceable, but not exactly."""

    units = op.tracer.units(op.args[0])
    if units is None:
        return None
    dims = len(op.args[1])
    if any(varies(units, units.ndim - 1 - d) for d in range(dims)):
        op.tracer.recording.approximate.append((unit_ids(units), here("layer_norm")))
    for weight in (value for value in op.args[2:4] if value is not None):
        follow(op, units, weight)
    return units


def weight_norm(op: Op) -> Labels:
    """`g * v / |v|`: a weight whose rows go with their lengths; fewer columns change the lengths of those that stay."""
    v, g = op.args[:2]
    if not op.tracer.is_weight(v):
        unknown(op)
        return None
    dim = op.arg(2, "dim", 0) % v.ndim
    for axis in range(v.ndim):
        for _, line in op.tracer.weight_lines(v, axis, "follows"):
            if axis != dim:
                op.tracer.recording.approximate.append((line[line > NONE], here("weight_norm")))
            else:
                for _, length in op.tracer.weight_lines(g, axis, "follows"):
                    op.tracer.couple_lines(line, length)
    return op.tracer.labels(v)


def batch_norm(op: Op) -> Labels:
    """Per-channel statistics follow the channel's unit (exact in eval mode)."""
    units = op.tracer.units(op.args[0])
    if units is None:
        return None
    channels_last = units.movedim(1, -1)
    for weight in (value for value in op.args[1:5] if isinstance(value, torch.Tensor)):
        follow(op, channels_last, weight)
    return units


def group_norm(op: Op) -> Labels:
    """One group is a layer norm over channels, one group per channel is exact; other groupings cut layers apart."""

    units = op.tracer.units(op.args[0])
    if units is None:
        return None
    channels, groups = op.args[4], op.args[6]
    if groups not in (1, channels):
        small = compact(units)
        blocks = small.expand(-1, channels, *small.shape[2:]).reshape(len(small), groups, -1, *small.shape[2:])
        if op.tracer.join(blocks, [2]):
            units = op.tracer.representatives(units)
        else:
            op.pin(f"group_norm cuts its units into {groups} groups")
    if groups == 1 and varies(units, 1):
        op.tracer.recording.approximate.append((unit_ids(units), here("group_norm")))
    for weight in (value for value in op.args[1:3] if value is not None):
        follow(op, units.movedim(1, -1), weight)
    return units
