"""Operations that move elements, and what views may do to a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from reprune.core.parts import is_part
from reprune.torch.tracing.labels import NONE, TAG, Ids, lines, squeeze_constant, unit_ids, varies
from reprune.torch.tracing.location import here
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.rules.op import Labels, Op, Rule
from reprune.torch.tracing.sizes.sizes import SizeInt
from reprune.torch.tracing.tracer import Tracer


def move(*data: int) -> Rule:
    """Rule of an operation that only moves elements: run it on the labels of the arguments at these positions."""

    def rule(op: Op) -> Any:
        tracer = op.tracer
        if not any(_has_labels(tracer, tensor) for index in data for tensor in tensors_in(op.arg(index))):
            return None
        args = [_as_labels(tracer, value) if index in data else value for index, value in enumerate(op.args)]
        if op.name == "constant_pad_nd":
            args = args[:2]
        if op.name in ("stack", "cat"):
            _keep_level(op)
        found = op.func(*args, **op.kwargs)
        found = [tensor.round().long() if tensor.dtype == torch.float64 else None for tensor in tensors_in(found)]
        if op.name == "gather" and found[0] is not None:
            tracer.meet_widened(op.args[2], found[0].clamp(min=NONE))
        for result in found[:1] if not tracer.inside_module else ():
            _check_rectangular(op, result.clamp(min=NONE))
        return found

    return rule


def _keep_level(op: Op) -> None:
    """Tensors made in sizes from attributes, such as first states, are put one above the other: they stay as long."""
    if op.name == "cat" and op.arg(1, "dim", 0) % op.out_tensor.ndim == op.out_tensor.ndim - 1:
        return
    held = [op.tracer.units(tensor) for tensor in op.args[0]]
    tags = [int(found.max()) - TAG for found in held if found is not None and bool((found >= TAG).any())]
    for tag in tags[1:]:
        op.tracer.recording.level.append((op.tracer.tags[tags[0]], op.tracer.tags[tag]))


def _has_labels(tracer: Tracer, tensor: torch.Tensor) -> bool:
    return tracer.is_parameter(tensor) or tracer.labels(tensor) is not None


def _as_labels(tracer: Tracer, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        found = tracer.labels(value)
        # Doubles hold every label exactly, and more operations run on them than on integers.
        return torch.zeros(value.shape, dtype=torch.float64, device=value.device) if found is None else found.double()
    if isinstance(value, (list, tuple)):
        return [_as_labels(tracer, item) for item in value]
    return NONE if isinstance(value, (int, float)) else value  # `x.scatter_(1, index, 1)`: a number is no label.


def pixel_shuffle(op: Op) -> Labels:
    """Channels become places of fewer channels: those of one go together."""
    moved: list[Labels] | None = move(0)(op)
    found = moved[0] if moved else None
    if found is not None and op.tracer.join(found.clamp(min=NONE), [-2, -1]):
        return op.tracer.representatives(found).amax((-2, -1), keepdim=True).expand(found.shape)
    return found


def fold(op: Op) -> Labels:
    """Overlapping windows are added back: every element keeps the label that all of its contributions share."""
    found = op.tracer.units(op.args[0])
    return None if found is None else shared(op, found, lambda part: op.func(part, *op.args[1:], **op.kwargs))


def shared(op: Op, units: torch.Tensor, add: Callable[[torch.Tensor], torch.Tensor]) -> Labels:
    """The label that all contributions to an element share, where `add` adds them up; else the units are pinned."""
    summed, squares = add(units.double()), add(units.double() ** 2)
    count = add((units != NONE).double()).clamp(min=1)
    if not torch.allclose(squares * count, summed**2):
        op.pin("entries of different units are added")
        return None
    result: torch.Tensor = (summed / count).round().long()
    return result


RESHAPES = {"view", "_unsafe_view", "_reshape_alias", "unfold", "as_strided"}
_CUTS = {"slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind", "diagonal"}


def check_view(op: Op, source: torch.Tensor, outputs: Sequence[torch.Tensor]) -> None:
    """Views need no labels, but they may cut a layer into parts, or need layers to have equal numbers of units."""
    if op.name in RESHAPES:
        for tensor in outputs:
            found = op.tracer.units(tensor)
            if found is not None:
                _check_parts(op, found)
                _check_rectangular(op, found)
    elif op.name in _CUTS:
        whole = op.tracer.units(source)
        if whole is None:
            return
        if op.name == "split":
            whole = _join_pieces(op, whole, outputs)
        before = op.tracer.units_by_layer(whole)
        note_seams(op, whole)
        for tensor in outputs:
            part = op.tracer.units(tensor)
            _check_cut(op, whole, before, {} if part is None else op.tracer.units_by_layer(part))
    elif op.name == "squeeze":
        whole = op.tracer.units(source)
        dims = op.arg(1, "dim", range(source.ndim))
        for dim in [dims] if isinstance(dims, int) else dims:
            if whole is not None and varies(whole, dim):
                op.tracer.recording.lone.append(unit_ids(whole))  # A single unit's axis would be dropped, too.


def _join_pieces(op: Op, whole: torch.Tensor, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Equal pieces of a width stay equal: what is at the same place in each goes together."""
    pieces = [op.tracer.units(tensor) for tensor in outputs]
    held = [piece for piece in pieces if piece is not None and piece.shape == outputs[0].shape]
    if op.tracer.widths.everywhere and len(held) == len(outputs) > 1:
        op.tracer.join(torch.stack(held), [0])
        return op.tracer.representatives(whole)
    return whole


def note_seams(op: Op, whole: torch.Tensor) -> None:
    """Where a layer is cut at a place that follows from sizes, it is taken in parts: what is left of each is known."""
    at = 2 if op.name in ("split", "split_with_sizes") else 1
    dim = op.arg(at, "dim", -1 if op.name == "glu" else 0)
    ends = _ends(op, whole.size(dim)) if varies(whole, dim) else []
    held = lines(whole, dim) if ends else np.zeros((0, 0), dtype=np.int64)
    if any((line == NONE).any() or len(op.tracer.units_by_layer(torch.from_numpy(line))) > 1 for line in held):
        return
    for line in held:
        op.tracer.recording.seams.update((int(line[end - 1]), int(line[end])) for end in ends)
    if op.name in ("split", "glu"):
        op.tracer.recording.aligned += [line.reshape(len(ends) + 1, -1) for line in held]


def _ends(op: Op, size: int) -> list[int]:
    """Where an operation cuts an axis of this size, if all of these places follow from sizes."""
    given = {int(one) for one in op.tracer.given}
    if op.name == "glu":
        return [size // 2]
    if op.name == "split" and op.args[1] in given and size % op.args[1] == 0:
        return list(range(op.args[1], size, op.args[1]))
    if op.name == "split_with_sizes" and set(op.args[1]) <= given:
        return list(accumulate(op.args[1]))[:-1]
    if op.name == "slice":
        start, stop = op.arg(2, "start") or 0, op.arg(3, "end")
        stop = size if stop is None else min(stop, size)
        if (start in given or start == 0) and (stop in given or stop - start in given or stop == size):
            return [end % size for end in (start, stop) if end % size]
    return []


def _check_cut(op: Op, whole: torch.Tensor, before: dict[str, Ids], after: dict[str, Ids]) -> None:
    layers, widths = op.tracer.layers, op.tracer.widths
    for name, units in after.items():
        if len(units) < len(before[name]):
            if name in widths.layers and widths.cut(name, _members(op.tracer, layers[name].labels, units)):
                continue
            if is_part(op.tracer.recording.seams, layers[name].labels, units):
                continue
            ids = torch.from_numpy(layers[name].labels)
            op.tracer.pin(ids, op.name, "some of its units are taken by their position")
    if after and len(after) < len(before) and _side_by_side(op, whole):
        if op.name not in ("slice", "narrow", "split_with_sizes"):  # Those cut where a size says, equal or not.
            op.tracer.recording.keep_equal(list(before), here(op.name))
        op.tracer.suspect(whole, op.name)


def _side_by_side(op: Op, whole: torch.Tensor) -> bool:
    """Whether the axis that is cut holds several layers one after the other, each with all of its units."""
    if op.name == "diagonal":
        return True
    at = 2 if op.name in ("split", "split_with_sizes", "chunk") else 1
    for line in lines(whole, op.arg(at, "dim", 0)):
        held = op.tracer.units_by_layer(torch.from_numpy(line))
        if len(held) > 1 and any(len(units) > 1 for units in held.values()):
            return True
    return False


def _members(tracer: Tracer, labels: Ids, classes: Ids) -> Ids:
    """Those labels that belong to one of the classes."""
    return labels[np.isin(tracer.recording.couplings.roots(labels), classes)]


def _join_parts(op: Op, labels: torch.Tensor) -> None:
    """Widths that a view spreads over several axes shrink along one of them; units side by side on the others join.

    That is the outermost axis whose size the model's code leaves open or takes from an attribute; where it gives plain
    numbers alone, it shows at the end (`Widths.settle`).
    """
    tracer, small = op.tracer, squeeze_constant(labels)
    dims = [dim for dim in range(small.ndim) if small.size(dim) > 1 and _holds_parts(tracer, small, dim)]
    if len(dims) < 2:
        return
    free = _open_axis(tracer, small, dims)
    if free is None:
        tracer.widths.splits.append((small, dims))
    else:
        tracer.join(small, [dim for dim in dims if dim != free])


def _open_axis(tracer: Tracer, labels: torch.Tensor, dims: Sequence[int]) -> int | None:
    """The first of these axes whose size the model's code leaves open or takes from an attribute."""
    sizes = tracer.given
    if len(sizes) == labels.ndim:
        return next((dim for dim in dims if isinstance(sizes[dim], SizeInt) or int(sizes[dim]) == -1), None)
    if len(sizes) != 2:
        return None
    # Within PyTorch's attention, which views by itself: an axis that holds so many heads of each example. Queries, keys
    # and values side by side, which it takes apart likewise, are as wide as all heads together.
    heads, width = sizes
    if not isinstance(heads, SizeInt) or labels.size(dims[-1]) * heads != width:
        return None
    dim = next((dim for dim in dims if labels.size(dim) % heads == 0), None)
    if dim is not None and heads.expression:
        whole = heads * (labels.size(dim) // int(heads))
        for line in lines(tracer.representatives(labels), dim):
            tracer.constrain(whole.expression, line)
    return dim


def _holds_parts(tracer: Tracer, labels: torch.Tensor, dim: int) -> bool:
    """Whether some line along this axis holds several units of a width, and not all."""
    classes = tracer.widths.sizes(tracer.recording.couplings)
    return any(
        1 < len(units) < classes.get(name, 0)
        for line in lines(labels, dim)
        for name, units in tracer.units_by_layer(torch.from_numpy(line)).items()
    )


def _check_parts(op: Op, labels: torch.Tensor) -> None:
    if op.tracer.widths.everywhere:
        _join_parts(op, labels)
        labels = op.tracer.representatives(labels)
    small = squeeze_constant(labels)
    for dim in range(small.ndim):
        if small.size(dim) < 2:
            continue
        for line in lines(small, dim):
            for name, units in op.tracer.units_by_layer(torch.from_numpy(line)).items():
                layer = op.tracer.recording.layers.get(name)
                if layer is None or is_part(op.tracer.recording.seams, layer.labels, units):
                    continue
                if 1 < len(units) < len(layer.labels):
                    ids = torch.from_numpy(layer.labels)
                    op.tracer.pin(ids, op.name, f"its units are split into parts of {len(units)}")


def _check_rectangular(op: Op, labels: torch.Tensor) -> None:
    """Lines of different layers side by side need equal lengths."""
    small = squeeze_constant(labels)
    for dim in range(small.ndim):
        if small.size(dim) < 2:
            continue
        found = lines(small, dim)
        held = [frozenset(op.tracer.units_by_layer(torch.from_numpy(line))) for line in found]
        if len({names for names in held if names}) > 1:
            op.tracer.recording.keep_equal(sorted(frozenset().union(*held)), here(op.name))
        elif len(found) > 1 and not any(held):
            op.tracer.recording.aligned.append(found)
            op.tracer.recording.views.append((found, here(op.name)))
