"""Operations that move elements, and what views may do to a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from reprune.torch.tracing.labels import NONE, Ids, lines, squeeze_constant
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.rules.op import Labels, Op, Rule
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
        found = op.func(*args, **op.kwargs)
        found = [tensor.round().long() if tensor.dtype == torch.float64 else None for tensor in tensors_in(found)]
        for result in found[:1] if not tracer.inside_module else ():
            _check_rectangular(op, result.clamp(min=NONE))
        return found

    return rule


def _has_labels(tracer: Tracer, tensor: torch.Tensor) -> bool:
    return tracer.is_parameter(tensor) or tracer.labels(tensor) is not None


def _as_labels(tracer: Tracer, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        found = tracer.labels(value)
        # Doubles hold every label exactly, and more operations run on them than on integers.
        return torch.zeros(value.shape, dtype=torch.float64, device=value.device) if found is None else found.double()
    return [_as_labels(tracer, item) for item in value] if isinstance(value, (list, tuple)) else value


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
        before = op.tracer.units_by_layer(whole)
        for tensor in outputs:
            part = op.tracer.units(tensor)
            _check_cut(op, whole, before, {} if part is None else op.tracer.units_by_layer(part))


def _check_cut(op: Op, whole: torch.Tensor, before: dict[str, Ids], after: dict[str, Ids]) -> None:
    layers = op.tracer.recording.layers
    for name, units in after.items():
        if len(units) < len(before[name]) and len(before[name]) > 1:
            ids = torch.from_numpy(layers[name].labels)
            op.tracer.pin(ids, op.name, "some of its units are taken by their position")
    if after and len(after) < len(before) and _side_by_side(op, whole):
        op.tracer.recording.count_coupled.append(list(before))
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


def _check_parts(op: Op, labels: torch.Tensor) -> None:
    small = squeeze_constant(labels)
    for dim in range(small.ndim):
        if small.size(dim) < 2:
            continue
        for line in lines(small, dim):
            for name, units in op.tracer.units_by_layer(torch.from_numpy(line)).items():
                layer = op.tracer.recording.layers[name]
                if 1 < len(units) < len(layer.labels):
                    ids = torch.from_numpy(layer.labels)
                    op.tracer.pin(ids, op.name, f"its units are split into parts of {len(units)}")


def _check_rectangular(op: Op, labels: torch.Tensor) -> None:
    """Lines of different layers side by side need equal lengths."""
    small = squeeze_constant(labels)
    for dim in range(small.ndim):
        if small.size(dim) < 2:
            continue
        held = [frozenset(op.tracer.units_by_layer(torch.from_numpy(line))) for line in lines(small, dim)]
        if len({names for names in held if names}) > 1:
            op.tracer.recording.count_coupled.append(sorted(frozenset().union(*held)))
