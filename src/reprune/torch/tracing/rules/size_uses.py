"""Sizes taken from attributes: which operation was given one, and what it is the number of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from reprune.torch.tracing.labels import Ids, lines, varies
from reprune.torch.tracing.sizes import SizeInt
from reprune.torch.tracing.tracer import Tracer

_FACTORIES = {"zeros": 0, "ones": 0, "empty": 0, "full": 0, "rand": 0, "randn": 0,
              "new_zeros": 1, "new_ones": 1, "new_empty": 1, "new_full": 1, "new": 1}  # fmt: skip
_SIZED_VIEWS = {"view", "reshape", "expand", "unflatten"}


def record_sizes(tracer: Tracer, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Note attributes that were given to an operation as a size, a boundary or a position."""
    if not any(
        isinstance(value, SizeInt) for value in _integers((args[1:] if name == "__getitem__" else args, kwargs))
    ):
        return
    if name in _FACTORIES and isinstance(out, torch.Tensor):
        for axis, size in enumerate(_sizes(args[_FACTORIES[name] :], kwargs)):
            if isinstance(size, SizeInt) and size.expression is not None and out.ndim:
                # A factory may be given several such sizes; the last one, the feature axis, counts.
                tracer.memory.set(out, torch.full((), tracer.tag(size.expression)).expand(out.shape))
                del axis
    elif name in _SIZED_VIEWS:
        found = tracer.units(out)
        sizes = _sizes(args[1:], kwargs)
        if found is not None and len(sizes) == out.ndim:
            for axis, size in enumerate(sizes):
                _constrain(tracer, size, lines(found, axis) if varies(found, axis) else ())
    elif name == "__getitem__":
        _record_slices(tracer, args[0], args[1])
    elif name in ("split", "narrow", "chunk"):
        _record_pieces(tracer, name, args, kwargs, [out] if isinstance(out, torch.Tensor) else list(out))


def _record_pieces(
    tracer: Tracer, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], pieces: Sequence[torch.Tensor]
) -> None:
    dim = kwargs.get("dim", args[2] if name == "split" and len(args) > 2 else args[1] if name == "narrow" else 0)
    given = args[1] if name == "split" and len(args) > 1 and isinstance(args[1], (list, tuple)) else None
    # A list has one size for every piece; a single number is that of each, and the first one stands for all.
    for piece, sizes in zip(pieces, given or [(args[1:], kwargs)], strict=False):
        found = tracer.units(piece)
        for size in _integers(sizes):
            if found is not None and varies(found, int(dim)):
                _constrain(tracer, size, lines(found, int(dim)))


def given_sizes(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
    """The sizes that a view is given, one for every dimension of what comes out; of attention the number of heads."""
    if name == "multi_head_attention_forward":
        return args[4:5]
    return _sizes(args[1:], kwargs) if name in ("view", "reshape") else ()


def _record_slices(tracer: Tracer, source: torch.Tensor, index: Any) -> None:
    found = tracer.units(source)
    if found is None:
        return
    index = index if isinstance(index, tuple) else (index,)
    used = sum(1 for item in index if item is not None and item is not Ellipsis)
    dim = 0
    for item in index:
        if item is Ellipsis:
            dim += source.ndim - used
        elif item is not None:
            if isinstance(item, slice) and varies(found, dim):
                for bound in (item.start, item.stop):
                    if isinstance(bound, SizeInt):
                        held = lines(found, dim)
                        _constrain(tracer, bound, held[:, :bound] if bound > 0 else held[:, bound:])
            dim += 1


def _constrain(tracer: Tracer, size: Any, held: Iterable[Ids]) -> None:
    if isinstance(size, SizeInt) and size.expression is not None:
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
