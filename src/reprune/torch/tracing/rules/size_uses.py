"""Sizes from attributes and off tensors: which operation was given one, and what it is the number of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch

from reprune.torch.tracing.labels import Ids, lines, varies
from reprune.torch.tracing.sizes.sizes import AxisSize, Expression, SizeInt
from reprune.torch.tracing.tracer import Tracer

_FACTORIES = {"zeros": 0, "ones": 0, "empty": 0, "full": 0, "rand": 0, "randn": 0,
              "new_zeros": 1, "new_ones": 1, "new_empty": 1, "new_full": 1, "new": 1}  # fmt: skip
_SIZED_VIEWS = {"view", "reshape", "expand", "broadcast_to"}
_CUTS = {"split", "narrow", "__getitem__"}
_ARITHMETIC = {"div", "truediv", "rdiv", "rtruediv", "true_divide", "divide", "mul", "rmul", "multiply", "pow", "rpow"}
_NORMS = {"layer_norm", "rms_norm"}
_LENGTHS = (torch.Tensor.size, torch.Tensor.shape.__get__)  # type: ignore[attr-defined]


def sized(tracer: Tracer, func: Any, args: Sequence[Any], out: Any) -> Any:
    """What `tensor.shape` and `tensor.size(…)` return, lengths of axes that hold units as numbers that remember it."""
    if func in _LENGTHS:
        found = tracer.units(args[0])
        if found is None:
            return out
        if isinstance(out, int):
            return _length(found, args[1] % found.ndim, out) if len(args) > 1 else out
        return torch.Size([_length(found, axis, size) for axis, size in enumerate(out)])
    return out


def _length(found: torch.Tensor, axis: int, size: int) -> int:
    if size < 2 or not varies(found, axis):
        return size
    return SizeInt(size, Expression({AxisSize(lines(found, axis)[0]): Fraction(1)}))


def record_sizes(tracer: Tracer, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Note sizes that were given to an operation as a size, a boundary or a position."""
    given = (args[1:] if name == "__getitem__" else args, kwargs)
    sizes = [value for value in _integers(given) if isinstance(value, SizeInt)]
    if not sizes:
        return
    for size in sizes if name.strip("_") in _ARITHMETIC else ():
        size.used_as_value()
    if name in _FACTORIES and isinstance(out, torch.Tensor) and out.ndim:
        for size in _sizes(args[_FACTORIES[name] :], kwargs):
            if isinstance(size, SizeInt):
                # A factory may be given several such sizes; the last one, the feature axis, counts.
                tracer.memory.set(out, torch.full((), tracer.tag(size.expression)).expand(out.shape))
    elif name in _SIZED_VIEWS:
        _shape(tracer, out, _sizes(args[1:], kwargs))
        _widened(tracer, out, _sizes(args[1:], kwargs))
    elif name == "repeat":
        _widened(tracer, out, _sizes(args[1:], kwargs))
    elif name in _NORMS:
        _shape(tracer, args[0], [None] * args[0].ndim + list(kwargs.get("normalized_shape", args[1])))
    elif name == "__getitem__":
        _slices(tracer, args[0], args[1])
    elif name == "split":
        _pieces(tracer, out, kwargs.get("split_size", args[1]), kwargs.get("dim", args[2] if len(args) > 2 else 0))
    elif name == "narrow":
        dim, start, length = (kwargs.get(key, args[k] if k < len(args) else 0) for k, key in _NARROW)
        _before(tracer, args[0], int(dim), start)
        _along(tracer, out, int(dim), length)


_NARROW = ((1, "dim"), (2, "start"), (3, "length"))


def given_sizes(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
    """The sizes that a view is given, one for every dimension of what comes out.

    Of attention, the number of heads and how wide they are together.

    Of what cuts, the sizes that follow when units go: those that remember where they came from, and those of chunks.
    """
    if name == "multi_head_attention_forward":
        return args[4], args[3]
    if name == "chunk":
        count, dim = (kwargs.get(key, args[k] if k < len(args) else 0) for k, key in ((1, "chunks"), (2, "dim")))
        return [-(-args[0].size(dim) // count)]
    if name in _CUTS:
        return [value for value in _integers((args[1:], kwargs)) if isinstance(value, SizeInt)]
    return _sizes(args[1:], kwargs) if name in ("view", "reshape") else ()


def _shape(tracer: Tracer, tensor: torch.Tensor, sizes: Sequence[Any]) -> None:
    """The last of these sizes are those of the tensor's axes."""
    for axis, size in enumerate(sizes[-tensor.ndim :]):
        _along(tracer, tensor, axis, size)


def _widened(tracer: Tracer, tensor: torch.Tensor, sizes: Sequence[Any]) -> None:
    """A tensor without units (a mask, an index) is repeated as often as an attribute says: it may meet units there."""
    if tracer.memory.get(tensor) is None and not tracer.is_parameter(tensor):
        for axis, size in enumerate(sizes[-tensor.ndim :], max(tensor.ndim - len(sizes), 0)):
            if isinstance(size, SizeInt) and tensor.size(axis) == size:
                tracer.widened.add(tensor, axis - tensor.ndim, size.expression)


def _pieces(tracer: Tracer, pieces: Sequence[torch.Tensor], sizes: Any, dim: Any) -> None:
    """Pieces of a split each have the size that was written for them."""
    each = sizes if isinstance(sizes, (list, tuple)) else [sizes] * len(pieces)
    for piece, size in zip(pieces, each, strict=False):
        if piece.size(int(dim)) == size:
            _along(tracer, piece, int(dim), size)


def _slices(tracer: Tracer, source: torch.Tensor, index: Any) -> None:
    index = index if isinstance(index, tuple) else (index,)
    used = sum(1 for item in index if item is not None and item is not Ellipsis)
    dim = 0
    for item in index:
        if item is Ellipsis:
            dim += source.ndim - used
        elif item is not None:
            if isinstance(item, slice):
                _before(tracer, source, dim, item.start)
                _before(tracer, source, dim, item.stop)
            dim += 1


def _along(tracer: Tracer, tensor: torch.Tensor, dim: int, size: Any) -> None:
    """A size is the length of an axis."""
    if not isinstance(size, SizeInt):
        return
    found = tracer.units(tensor)
    if found is None:
        if tracer.is_weight(tensor) and tensor.size(dim) == size:  # `self.h0.expand(batch, self.units)`
            _constrain(tracer, size, [line for _, line in tracer.weight_lines(tensor, dim, "follows")])
    elif varies(found, dim):
        _constrain(tracer, size, lines(found, dim))
    elif size.quotient is not None:
        tracer.compare_sizes([size.quotient])


def _before(tracer: Tracer, tensor: torch.Tensor, dim: int, bound: Any) -> None:
    """A size is a position on an axis: the number of what lies before it, or after a negative one."""
    found = tracer.units(tensor) if isinstance(bound, SizeInt) else None
    if found is not None and varies(found, dim):
        held = lines(found, dim)
        _constrain(
            tracer, bound if bound > 0 else -bound, held[:, : int(bound)] if bound > 0 else held[:, int(bound) :]
        )


def _constrain(tracer: Tracer, size: Any, held: Iterable[Ids]) -> None:
    if isinstance(size, SizeInt):
        for line in held:
            tracer.constrain(size.expression, line)


def _sizes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    value = kwargs.get("size", kwargs.get("shape", args[0] if args and isinstance(args[0], (list, tuple)) else args))
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _integers(value: Any) -> Iterable[Any]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, slice):
        yield from _integers((value.start, value.stop))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, Mapping):
        yield from _integers(tuple(value.values()))
