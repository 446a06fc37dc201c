"""Contractions: matrix products, convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from reprune.torch.tracing.labels import NONE, TAG, Ids, compact, lines, storage_id, unit_ids, varies
from reprune.torch.tracing.recording import Axis, Product
from reprune.torch.tracing.rules.elementwise import follow, pointwise, read_whole
from reprune.torch.tracing.rules.losses import lose
from reprune.torch.tracing.rules.op import Labels, Op, Rule
from reprune.torch.tracing.rules.positions import mixed, rows_of_buffers, several_of_one, without_rows
from reprune.torch.tracing.tracer import Tracer


@dataclass
class _Side:
    """One operand of a matrix product: its lines along the contracted axis, and its free axis."""

    tensor: torch.Tensor
    weight: bool
    contracted: list[Ids]
    axes: list[tuple[str, int]]
    free: Labels
    both: bool = False
    """Whether units lie along the contracted axis and along the free one."""


def _side(tracer: Tracer, tensor: torch.Tensor, contracted: int, free: int, other: torch.Tensor) -> _Side:
    units = tracer.units(tensor)
    if units is not None:
        units = without_rows(tracer, units, contracted, free, other)
        # A tensor that was made in a size from an attribute has its units along the axis that a weight reads.
        tagged = bool((compact(units) >= TAG).any())
        tagged_there = tagged and tracer.is_weight(other) and _fits_tags(tracer, units, contracted)
        if tagged and not tagged_there:
            units = units.where(units < TAG, NONE)
        if varies(units, contracted) and not several_of_one(tracer, units, contracted):
            # Gates that meet one unit are one: they do not vary.
            units = mixed(tracer, tracer.representatives(units), contracted, other)
            units = _one_for_each_row(tracer, units, contracted, free, other)
        # One unit alone varies nowhere; units along pairs of matrices, as heads, do not vary within one.
        alone = tensor.size(contracted) == 1 and not any(varies(units, dim) for dim in range(-units.ndim, 0))
        over_units = varies(units, contracted) or alone
        if over_units or tagged_there:
            beside = [line for _, line in tracer.weight_lines(tensor, contracted, "follows")]  # Learned states, say.
            return _Side(tensor, False, [*lines(units, contracted), *beside], [], None, both=varies(units, free))
        over = compact(units).amax(contracted)
        return _Side(tensor, False, [], [], over if bool((over > NONE).any()) else None)
    weight = tracer.is_weight(tensor)
    found = tracer.weight_lines(tensor, contracted, "reads" if weight else "follows")
    if weight and not found:
        found = _read_of_several(tracer, tensor, contracted, other)
    return _Side(tensor, weight, [line for _, line in found], [axis for axis, _ in found] if weight else [], None)


def _one_for_each_row(
    tracer: Tracer, units: torch.Tensor, contracted: int, free: int, other: torch.Tensor
) -> torch.Tensor:
    """Of a matrix that one weight makes, and that data is multiplied with, what is summed up goes together.

    So it is in a controlled differential equation: `self.field(h).view(-1, units, channels) @ dx`.
    """
    if not varies(units, free) or tracer.units(other) is not None or tracer.is_weight(other):
        return units
    rows = lines(units, contracted)
    labels = np.unique(rows)
    one_weight = labels[0] > NONE and len(np.unique(tracer.recording.couplings.space(labels[labels < TAG]))) == 1
    if not one_weight or len(labels) < rows.size or labels[-1] >= TAG:
        return units
    for row in rows:
        tracer.couple_lines(np.full_like(row, row[0]), row)
    return tracer.representatives(units)


def _fits_tags(tracer: Tracer, units: torch.Tensor, dim: int) -> bool:
    """Whether as many entries of a tagged tensor lie along an axis as the size says, or so many for each of several."""
    return any(
        (line == tag).sum() % tracer.tags[tag - TAG].value == 0
        for line in lines(units, dim)
        for tag in np.unique(line[line >= TAG])
    )


def _read_of_several(
    tracer: Tracer, weight: torch.Tensor, contracted: int, other: torch.Tensor
) -> list[tuple[Axis, Ids]]:
    """Of several axes of a weight that are summed over at once the one along which units lie."""
    units = tracer.units(other)
    if units is None or not (varies(units, -3 - contracted) or bool((compact(units) >= TAG).any())):
        return []
    name, places = tracer.weights.merged(weight, contracted, tracer.memory) or ("", {})
    held = lines(tracer.representatives(units), -3 - contracted)
    for axis, at in places.items():
        each = [np.stack([line[at == place] for place in range(at.max() + 1)]) for line in held]
        if all((one == one[:, :1]).all() for one in each):
            return [((name, axis), tracer.axis(name, axis, "reads")[at])]
    return []


def contract(op: Op, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> Labels:
    """out[…, i, j] = Σ_k a[…, i, k] · b[…, k, j]: whoever lies along k is coupled, a weight there is a consumer."""
    tracer = op.tracer
    if tracer.is_weight(a) and tracer.is_weight(b):
        return _product_of_weights(op, a, b)
    left, right = _side(tracer, a, -1, -2, b), _side(tracer, b, -2, -1, a)
    for one in left.contracted:
        for two in right.contracted:
            tracer.couple_lines(one, two)
    _meet(tracer, left, right, -1)
    _meet(tracer, right, left, -2)
    _record_reading(op, left, right)
    _record_reading(op, right, left)
    _keep_unless_plain(op, left, right)
    own = _record_consumer(op, right, -1, bias) if right.weight else _record_consumer(op, left, -2, bias)
    result = _result(op, left, right, own)
    _record_product(op, left, right, result)
    return result


def _result(op: Op, left: _Side, right: _Side, own: Ids | None) -> Labels:
    """Labels of a product: of what passes through on the free axes, or of what a weight makes."""
    tracer, shape = op.tracer, op.out.shape
    if left.free is not None and right.free is not None:
        found = _side_by_side(op, left.free, right.free)
        if found is not None:
            return found
        left, right = _one_free(op, left, right)
    _follow_batch(op, left, right)
    if own is not None and not tracer.widths.everywhere and not rows_of_buffers(tracer, own).all():
        left, right = (_without_positions(op, side, right.weight) for side in (left, right))
    if own is not None and (left.free is not None or right.free is not None):
        if tracer.widths.everywhere:
            tracer.pin(torch.from_numpy(own), op.name, "what it computes has units along another axis, too")
        elif not rows_of_buffers(tracer, own).any():
            tracer.recording.positions.append(own)  # Of a learned matrix over nodes or steps, say.
    if right.free is not None:
        return right.free.unsqueeze(-2).expand(shape)
    if left.free is not None:
        return left.free.unsqueeze(-1).expand(shape)
    if own is not None:
        side, dim = (right, -1) if right.weight else (left, -2)
        tracer.begin("linear", side.tensor, dim)
        line = torch.from_numpy(own).to(op.out.device)
        return (line if right.weight else line.unsqueeze(-1)).expand(shape)
    if left.both or right.both:
        lose(op, "units lie along both axes of a matrix, and a product sums over one of them")
    return None


def _product_of_weights(op: Op, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A weight that is the product of two: with all axes of theirs that are not summed over."""
    weights = op.tracer.weights
    pairs = [[(a, dim), (b, dim)] for dim in range(a.ndim - 2)]
    free = [*weights.factors(a, -2, op.tracer.memory), *weights.factors(b, -1, op.tracer.memory)]
    shape = [*op.out.shape[:-2], *(weight.size(dim) for weight, dim in free)]
    return op.tracer.derive(op.out.reshape(shape), [*pairs, *([one] for one in free)], plain=True).view(op.out.shape)


def _side_by_side(op: Op, left: torch.Tensor, right: torch.Tensor) -> Labels:
    """Products of many pairs of matrices, as those of attention's heads, whose units lie along the pairs."""
    tracer = op.tracer
    spread = [side for side in (left, right) if varies(side, -1)]
    along_pairs = [side for side in (left, right) if any(varies(side, dim) for dim in range(side.ndim - 1))]
    if len(along_pairs) < 2 or not all(tracer.join(side, [-1]) for side in spread):
        return None
    first, second = (tracer.representatives(side).amax(-1) for side in (left, right))
    found = tracer.couple(first, second)
    tracer.widths.heads.append(unit_ids(found))
    return found[..., None, None].expand(op.out.shape)


def _follow_batch(op: Op, left: _Side, right: _Side) -> None:
    """A weight made of many matrices has one for each of the units that lie along them."""
    for side, other in ((left, right), (right, left)):
        if side.free is None or not other.weight:
            continue
        for dim in range(side.free.ndim - 1):
            for _, line in op.tracer.weight_lines(other.tensor, dim, "follows") if varies(side.free, dim) else ():
                for units in lines(side.free, dim):
                    op.tracer.couple_lines(line, units)


def _meet(tracer: Tracer, side: _Side, other: _Side, contracted: int) -> None:
    """What came from outside the call is read by a weight."""
    origins = tracer.origin(side.tensor)
    for (name, _), line in zip(other.axes, other.contracted, strict=False):
        tracer.origins.meet("read", origins, line if contracted == -1 else line[:, None], name)


def _one_free(op: Op, left: _Side, right: _Side) -> tuple[_Side, _Side]:
    """An outer product has units along both axes and an element only one label: those of the other side stay."""
    held = [op.tracer.units_by_layer(side.free) if side.free is not None else {} for side in (left, right)]
    reason = "an outer product of two sets of units"
    if held[0] and not held[1]:
        op.tracer.pin(right.free, op.name, reason)
        return left, replace(right, free=None)
    if held[0]:
        op.tracer.pin(right.free, op.name, reason)
    op.tracer.pin(left.free, op.name, reason)
    return replace(left, free=None), right


def _without_positions(op: Op, side: _Side, features: bool) -> _Side:
    """A side without free labels that name positions, such as the nodes of a graph: what a weight makes goes before.

    Rows of a constant matrix are positions; so are rows of a weight beside which another one makes `features` (it is
    multiplied from the right), unless they have been seen to go round.
    """
    if side.free is None:
        return side
    found = unit_ids(side.free)
    units = op.tracer.is_recurrent(side.free) or op.tracer.goes_round(found)
    if not rows_of_buffers(op.tracer, found).all() and (units or not features):
        return side
    op.tracer.pin(side.free, op.name, "a weight is applied along another axis of what holds its units")
    op.tracer.recording.positions.append(found)
    return replace(side, free=None)


def _keep_unless_plain(op: Op, left: _Side, right: _Side) -> None:
    """Units stay that are read by a weight which zeros in parameters do not silence."""
    for side, other in ((left, right), (right, left)):
        if op.tracer.opaque & {name for name, _ in side.axes}:
            for line in other.contracted:
                reason = "read by a weight that is computed from others in a way that does not keep zeros"
                op.tracer.pin(torch.from_numpy(line), op.name, reason)


def _record_reading(op: Op, side: _Side, other: _Side) -> None:
    """Units that are contracted with something that is no weight of the model."""
    if side.weight or not side.contracted or (other.weight and other.contracted):
        return
    ids = np.unique(np.concatenate(side.contracted))
    if other.weight:
        op.tracer.pin(torch.from_numpy(ids), op.name, "multiplied by a weight that was computed in an unknown way")
    op.tracer.recording.direct.append(ids[(ids > NONE) & (ids < TAG)])
    if not other.contracted:
        op.tracer.suspect(torch.from_numpy(ids), op.name)


def _record_consumer(op: Op, side: _Side, free: int, bias: torch.Tensor | None) -> Ids | None:
    """Note a weight as consumer; returns the labels of what it produces."""
    if not side.weight:
        return None
    tracer = op.tracer
    produced = tracer.weight_lines(side.tensor, free, "own")
    name = tracer.owner(bias) if bias is not None else None
    for axis in side.axes:
        weight = tracer.tensors[axis[0]]
        # A part of a longer bias, as attention's queries have, cannot take offsets up by its name.
        fits = name is not None and tracer.tensors[name].numel() * weight.shape[axis[1]] == weight.numel()
        rows = op.out.numel() // max(op.out.shape[free], 1)
        for real in tracer.real_axes(axis):
            tracer.recording.takes_bias(real, name if fits and real == axis else None)
            tracer.recording.uses[real[0]] = tracer.recording.uses.get(real[0], 0) + 1
            tracer.recording.rows[real[0]] = tracer.recording.rows.get(real[0], 0) + rows
    if bias is None and free == -1:
        plain = [axis for axis in side.axes if tracer.real_axes(axis) == [axis]]
        tracer.recording.unbiased[storage_id(op.out_tensor)] = (op.out_tensor, plain)
    if not produced:
        return None
    reads = [real for axis in side.axes for real in tracer.real_axes(axis)]
    tracer.recording.maps += [(axis, made) for axis in reads for made, _ in produced]
    own = produced[0][1].copy()
    for _, line in produced[1:]:
        own = np.where(own == NONE, line, own)
    if bias is not None and bias.ndim == 1:
        for _, line in tracer.weight_lines(bias, 0, "own"):
            tracer.couple_lines(line, own)
    return own


def add(op: Op) -> Labels:
    """`product + bias`: what `linear` is made of where its input is not contiguous; or any other sum."""
    for product, bias in (op.args[:2], op.args[1::-1]):
        known = isinstance(product, torch.Tensor) and isinstance(bias, torch.Tensor) and bias.ndim == 1
        held = op.tracer.recording.unbiased.pop(storage_id(product), None) if known else None
        if held is not None and product.shape[-1] == len(bias) and op.kwargs.get("alpha", 1) == 1:
            _record_bias(op.tracer, held[1], op.tracer.owner(bias))
            op.tracer.weight_lines(bias, 0, "own")  # As `linear` itself does: what makes the units, not what follows.
    return pointwise(op)


def _record_bias(tracer: Tracer, axes: Iterable[Axis], name: str | None) -> None:
    """Note what was added to a product, if it was so at every use of the weight."""
    for axis in axes:
        recording, weight = tracer.recording, tracer.tensors[axis[0]]
        if name is not None and tracer.tensors[name].numel() * weight.shape[axis[1]] == weight.numel():
            recording.added[axis, name] = recording.added.get((axis, name), 0) + 1
            if recording.added[axis, name] == recording.uses[axis[0]]:
                recording.biases[axis] = name


def _record_product(op: Op, left: _Side, right: _Side, result: Labels) -> None:
    rows, columns, inner = op.out.shape[-2], op.out.shape[-1], left.tensor.shape[-1]

    def line(found: list[Ids] | Ids, size: int) -> Ids:
        return found[0] if len(found) else np.zeros(size, dtype=np.int64)

    # The weight's own line first: an activation of zeros knows its size only.
    sides = (left, right) if left.weight else (right, left)
    along = line([*sides[0].contracted, *sides[1].contracted], inner)
    out_rows = out_columns = np.zeros((0, 0), dtype=np.int64)
    if result is not None and varies(result, -1):
        out_columns = lines(result, -1)
    elif result is not None and varies(result, -2):
        out_rows = lines(result, -2)
    # Of many pairs of matrices, as those of attention's heads, units may lie along the pairs.
    pairs = [] if result is None else [lines(result, dim)[0] for dim in range(result.ndim - 2) if varies(result, dim)]
    batch = op.out.numel() // max(rows * columns * math.prod(map(len, pairs)), 1)
    axes = (*pairs, line(out_rows, rows), line(out_columns, columns), along)
    op.tracer.recording.products.append(Product(batch, axes))


def matmul(at: int, bias_at: int | None = None) -> Rule:
    """Rule of `mm`, `bmm` (operands at `at`) and `addmm`, `baddbmm` (with what is added at `bias_at`)."""

    def rule(op: Op) -> Labels:
        bias = op.args[bias_at] if bias_at is not None else None
        result = contract(op, op.args[at], op.args[at + 1], bias)
        units = op.tracer.units(bias) if bias is not None else None
        if result is not None and bias is not None and bias.ndim > 1 and op.tracer.is_weight(bias):
            follow(op, result, bias)
        if units is None:
            return result
        return units.expand(op.out.shape) if result is None else op.tracer.couple(result, units)

    return rule


def matvec(op: Op) -> Labels:
    """`mv(a, v)` and `addmv`: a product with a matrix of one column."""
    a, v = op.args[-2:]
    wide = Op(op.tracer, op.name, op.func, op.args, op.kwargs, op.out.unsqueeze(-1))
    found = contract(wide, a, v.unsqueeze(-1))
    return None if found is None else found.squeeze(-1)


def dot(op: Op) -> Labels:
    """`dot(a, b)`: a product of one row with one column."""
    a, b = op.args[:2]
    wide = Op(op.tracer, op.name, op.func, op.args, op.kwargs, op.out.view(1, 1))
    contract(wide, a.unsqueeze(0), b.unsqueeze(-1))
    return None


def distances(op: Op) -> None:
    """`cdist(a, b)`: differences over all features, of every row of one with every row of the other."""
    sides = [op.tracer.units(tensor) for tensor in op.args[:2]]
    held = [list(lines(units, -1)) if units is not None else [] for units in sides]
    for tensor, found in zip(op.args[:2], held, strict=True):
        found += [line for _, line in op.tracer.weight_lines(tensor, -1, "follows")] if not found else []
    for one in held[0]:
        for two in held[1]:
            op.tracer.couple_lines(one, two)
    op.tracer.recording.direct += [unit_ids(units) for units in sides if units is not None]


def distance(op: Op) -> None:
    """`dist(a, b)`: the norm of a difference."""
    read_whole(op, op.args[:2])


def bilinear(op: Op) -> Labels:
    """`F.bilinear`: a weight with an axis for each of two inputs, and one for what comes out."""
    tracer = op.tracer
    weight = op.args[1]
    read: list[Ids] = []
    for dim, data in ((1, op.args[0]), (2, op.args[2])):
        units = tracer.units(data)
        for _, line in tracer.weight_lines(weight, dim, "reads"):
            read.append(line)
            for held in lines(units, -1) if units is not None else ():
                tracer.couple_lines(line, held)
    produced = tracer.weight_lines(weight, 0, "own")
    if not produced:
        return None
    tracer.recording.products.append(Product(op.out.numel() // op.out.shape[-1], (produced[0][1], *read)))
    tracer.begin("linear", weight, 0)
    return torch.from_numpy(produced[0][1]).to(op.out.device).expand(op.out.shape)
