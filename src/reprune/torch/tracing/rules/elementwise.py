"""Operations element by element: operands that share a position are coupled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from reprune.torch.tracing.labels import NONE, TAG, compact, lines, unit_ids, varies
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.rules.movement import note_seams
from reprune.torch.tracing.rules.op import Labels, Op
from reprune.torch.tracing.rules.positions import reads_buffers, rows_of_buffers
from reprune.torch.tracing.tracer import Tracer


def pointwise(op: Op) -> Labels:
    """Operands that share a position are coupled; parameters follow the units they are combined with."""
    return combine(op, op.out_tensor.shape)


def combine(op: Op, shape: torch.Size) -> Labels:
    """Labels of what operands of an operation make that are broadcast to this shape."""
    tracer = op.tracer
    operands = [tensor for tensor in tensors_in((op.args, op.kwargs)) if tensor.ndim <= len(shape)]
    base: Labels = None
    weights, plain = [], []
    for tensor in operands:
        units = tracer.units(tensor)
        if units is not None:
            base = units.expand(shape) if base is None else _together(op, base, units)
        elif tracer.is_weight(tensor):
            weights.append(tensor)
        elif tensor.numel() > 1:
            plain.append(tensor)
    origins = [found for found in map(tracer.origin, operands) if found is not None]
    if base is None:
        alike = not any(_crosses(tracer, weight, tensor) for weight in weights for tensor in plain)
        if weights and alike:
            return _combine_weights(op, weights, shape)
        # Of several tensors from outside the one that is not repeated is the state; the others mask or shift it.
        return max(origins, key=lambda found: compact(found).numel()).expand(shape) if origins else None
    for found in origins:
        tracer.origins.meet("beside", found, base)
    for weight in weights:
        follow(op, base, weight)
    for tensor in plain:
        tracer.meet_widened(tensor, base)
        offset = base.ndim - tensor.ndim
        if any(tensor.size(d - offset) > 1 and varies(base, d) for d in range(offset, base.ndim)):
            tracer.suspect(base, op.name)
    return base


def _crosses(tracer: Tracer, weight: torch.Tensor, plain: torch.Tensor) -> bool:
    """Whether something from outside varies along an axis of a weight; over time and examples it may."""
    if not tracer.recording.provenance.is_data(plain):
        return False  # A mask that is drawn anew, say.
    found = tracer.labels(weight)
    shape = () if found is None else compact(found).shape
    return any(one > 1 and other > 1 for one, other in zip(reversed(shape), reversed(plain.shape), strict=False))


def _together(op: Op, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Couple two operands. Of an outer product of two widths an element can only have one label: the fewer stay."""
    tracer, shape = op.tracer, first.shape
    if not tracer.widths.everywhere and not reads_buffers(tracer):
        return tracer.couple(first, second)
    wide = second.expand(shape)
    along = [{dim for dim in range(len(shape)) if varies(found, dim)} for found in (first, wide)]
    if not all(along) or along[0] & along[1]:
        return tracer.couple(first, second)
    for rows, units in ((first, wide), (wide, first)):
        found = unit_ids(rows)
        if len(found) and rows_of_buffers(tracer, found).all():  # Positions, such as the nodes of a graph.
            tracer.recording.positions.append(found)
            return units
    if not tracer.widths.everywhere:
        return tracer.couple(first, second)
    more, fewer = sorted((first, wide), key=lambda found: (not tracer.is_recurrent(found), -len(unit_ids(found))))
    tracer.pin(fewer, op.name, "an outer product of two sets of units")
    return more


def follow(op: Op, base: torch.Tensor, weight: torch.Tensor) -> None:
    """Couple a parameter's axes with the units that vary along them."""
    offset = base.ndim - weight.ndim
    dims = [d for d in range(max(offset, 0), base.ndim) if weight.size(d - offset) > 1 and varies(base, d)]
    if len(dims) > 1:
        dims = [dim for dim in dims if not _stacks_layers(op.tracer, base, dim)]
    for dim in dims:
        found = op.tracer.weight_lines(weight, dim - offset, "follows")
        if not found:
            op.tracer.pin(base, op.name, "combined with a weight that is computed in a way that was not understood")
        for _, line in found:
            for units in lines(base, dim):
                op.tracer.couple_lines(line, units)


def _stacks_layers(tracer: Tracer, units: torch.Tensor, dim: int) -> bool:
    """Whether units of different layers are put one above the other along an axis: a learned state of all layers."""
    held = [line[(line > NONE) & (line < TAG)] for line in lines(units, dim)]
    return all(len(np.unique(tracer.recording.couplings.space(line))) == len(line) for line in held)


def _combine_weights(op: Op, weights: Sequence[torch.Tensor], shape: torch.Size) -> Labels:
    """A weight computed from parameters: of a product the largest with what scales it, else one made of all of them."""
    main, *others = sorted(weights, key=lambda weight: -weight.numel())
    if main.numel() < 2:
        return None
    many = any(other.numel() > 1 for other in others) and op.name not in ("mul", "div")
    if many or not _keeps_zeros(op, main):
        axes = [
            [(weight, dim - len(shape)) for weight in weights if weight.ndim >= len(shape) - dim]
            for dim in range(len(shape))
        ]
        return op.tracer.derive(op.out_tensor, axes, plain=many)
    for other in others:
        offset = main.ndim - other.ndim
        for dim in range(max(offset, 0), main.ndim):
            if other.size(dim - offset) > 1:
                for _, line in op.tracer.weight_lines(main, dim, "follows"):
                    for _, other_line in op.tracer.weight_lines(other, dim - offset, "follows"):
                        op.tracer.couple_lines(line, other_line)
    found = op.tracer.labels(main)
    return None if found is None else found.expand(shape)


def _keeps_zeros(op: Op, weight: torch.Tensor) -> bool:
    """Whether the operation makes zeros of the weight's zeros: a weight is silenced by zeros in its parameters."""
    zeros = torch.zeros_like(weight)
    args = [zeros if value is weight else value for value in op.args]
    try:
        return op.in_place or not bool(next(iter(tensors_in(op.func(*args, **op.kwargs)))).any())
    except RuntimeError:  # Whole numbers are not divided by zero.
        return False


def compare(op: Op) -> None:
    """`equal(a, b)`: units are read without a weight, for the answer to a question."""
    first, second = op.args[:2]
    if op.out or first.shape == second.shape:
        read_whole(op, [first, second])


def read_whole(op: Op, operands: Sequence[torch.Tensor]) -> None:
    """Operands are combined element by element and read without a weight."""
    found = combine(op, torch.broadcast_tensors(*operands)[0].shape)  # type: ignore[no-untyped-call]
    if found is not None:
        op.tracer.recording.direct.append(unit_ids(found))


def copy(op: Op) -> Labels:
    """`copy_(target, source)`: the labels of the source."""
    found = op.tracer.labels(op.args[1])
    if found is None:
        return None
    op.tracer.meet_tags(op.tracer.memory.get(op.args[0]), found)
    if op.tracer.is_parameter(op.args[0]) and op.tracer.units(op.args[1]) is not None:
        follow(op, found.expand(op.out.shape), op.args[0])  # A buffer that keeps a state.
    return found.expand(op.out.shape)


def like(op: Op) -> Labels:
    """`zeros_like(x)`, `x.zero_()`: filled anew, with a place for every unit of x."""
    return op.tracer.memory.get(op.args[0]) if op.in_place else op.tracer.units(op.args[0])


def nothing(op: Op) -> None:
    """A result without units."""


def glu(op: Op) -> Labels:
    """One half gates the other, position by position."""
    found = op.tracer.units(op.args[0])
    if found is None:
        return None
    note_seams(op, found)
    return op.tracer.couple(*found.chunk(2, op.arg(1, "dim", -1)))


def unknown(op: Op) -> None:
    """No rule: the units are left alone."""
    if op.name == "_local_scalar_dense":
        op.pin("the model's code takes a value of its units out of PyTorch (item(), int(), float(), an index)")
    else:
        op.pin(f"'{op.name}' is not an operation that reprune can follow")


def real_and_complex(op: Op) -> Labels:
    """Pairs of real numbers seen as complex ones, which couples them, and back."""
    units = op.tracer.units(op.args[0])
    if units is None:
        return None
    if op.out.is_complex():
        return op.tracer.couple(*units.unbind(-1))
    return units.unsqueeze(-1).expand(op.out.shape)
