"""Operations along dimensions: sums, maxima, softmax, sorting, pooling."""

from __future__ import annotations

import numpy as np
import torch

from reprune.torch.tracing.labels import NONE, TAG, compact, lines, unit_ids, varies
from reprune.torch.tracing.rules.op import Labels, Op, Rule
from reprune.torch.tracing.rules.summaries import summarise


def over_dims(dims_at: int = 1, *, sums: bool = False, reduces: bool = True) -> Rule:
    """Rule of an operation along dimensions (`sum`, `softmax`, `max`, `cumsum`, `sort`…)."""

    def rule(op: Op) -> Labels:
        found = op.tracer.units(op.args[0])
        if found is None:
            return _of_weight(op, dims_at) if op.tracer.is_weight(op.args[0]) else None
        dims = _dims(op, dims_at, found.ndim)
        for dim in dims:
            if not varies(found, dim):
                continue
            if _couple_along(op, found, dim):
                continue
            if sums:
                op.tracer.recording.direct.append(unit_ids(found))
            elif reduces:
                summarise(op, found)
            else:
                op.pin(f"'{op.name}' runs over its units")
            return None
        small = compact(found)
        if not dims:
            return found
        return small.amax(dims, keepdim=op.out_tensor.ndim == found.ndim)

    return rule


def _of_weight(op: Op, dims_at: int) -> Labels:
    """A weight computed from parameters along dimensions: its other axes are theirs."""
    weight, out = op.args[0], op.out_tensor
    dims = _dims(op, dims_at, weight.ndim)
    same = out.ndim == weight.ndim
    left = range(weight.ndim) if same else [dim for dim in range(weight.ndim) if dim not in dims]
    if not out.numel() or len(left) != out.ndim:
        return None
    axes = [[(weight, dim)] if out.size(k) == weight.size(dim) else [] for k, dim in enumerate(left)]
    return op.tracer.derive(out, axes, plain=op.name in ("sum", "mean"))


def _dims(op: Op, at: int, ndim: int) -> list[int]:
    value = op.arg(at, "dim")
    if isinstance(value, bool) or value is None or value == []:
        return list(range(ndim))
    if isinstance(value, torch.Tensor):
        return list(range(ndim))
    return sorted({dim % ndim for dim in ([value] if isinstance(value, int) else value)}) if ndim else []


def _couple_along(op: Op, found: torch.Tensor, dim: int) -> bool:
    """Couple the labels of each line if they belong to different layers (directions that are added, say)."""
    couplings = op.tracer.recording.couplings
    held = lines(found, dim)
    for line in held:
        names = line[(line != NONE) & (line < TAG)]
        if len(np.unique(couplings.space(np.unique(names)))) < len(np.unique(names)):
            return False
    for line in held:
        names = line[line != NONE]
        op.tracer.couple_lines(np.full(len(names), names[0]), names)
    return True


def along_last(op: Op) -> Labels:
    """Draws from the last dimension, which must not hold units."""
    units = op.tracer.units(op.args[0])
    if units is not None and varies(units, -1):
        op.pin(f"'{op.name}' runs over its units")
        return None
    return None if units is None else compact(units).amax(-1, keepdim=True).expand(op.out_tensor.shape)


def where_not_zero(op: Op) -> None:
    """Positions, of which there are as many as values that are not zero."""
    units = op.tracer.units(op.args[0])
    if units is not None:
        summarise(op, units)


def within_matrices(op: Op) -> Labels:
    """Equations and inverses, matrix by matrix (`solve_triangular(A, B)`): units may lie along the matrices, as heads.

    The columns of B are solved one by one, so units may lie along these as well.
    """
    matrix, *given = (tensor for tensor in op.args[:2] if isinstance(tensor, torch.Tensor))
    if any(op.tracer.is_weight(tensor) for tensor in (matrix, *given)):
        op.pin(f"'{op.name}' of a weight")
        return None
    free = -1 if op.arg(3, "left", True) else -2
    result: Labels = None
    for tensor, dims in [(matrix, (-2, -1)), *((tensor, (-3 - free,)) for tensor in given)]:
        units = op.tracer.units(tensor)
        if units is None:
            continue
        if any(varies(units, dim) for dim in dims):
            op.pin(f"'{op.name}' runs over its units")
            return None
        along = compact(units).amax(dims, keepdim=True)
        result = along if result is None else op.tracer.couple(result, along)
    return None if result is None else result.expand(op.out_tensor.shape)


def pooling(spatial: int) -> Rule:
    """Rule of pooling over the last dimensions, which must not hold units."""

    def rule(op: Op) -> Labels:
        units = op.tracer.units(op.args[0])
        if units is None:
            return None
        dims = list(range(units.ndim - spatial, units.ndim))
        if any(varies(units, dim) for dim in dims):
            if not op.tracer.join(units, dims):
                op.pin(f"'{op.name}' runs over its units")
                return None
            units = op.tracer.representatives(units)
        return compact(units).amax(dims, keepdim=True).expand(op.out_tensor.shape)

    return rule
