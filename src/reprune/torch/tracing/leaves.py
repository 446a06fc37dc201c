"""Tensors in nested arguments and results, by where they are: read them, and put others in their places."""

from __future__ import annotations

import copy
import gc
import inspect
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

Path = tuple[str | int, ...]
_DEPTH = 6
Change = Callable[[Path, torch.Tensor], Any]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, torch.Tensor]]:
    """Every tensor in nested tuples, lists, mappings and plain objects, with its path.

    Args:
        value: The nest.
        path: Where it is.
    """
    return ((place, end) for place, end in _ends(value, path) if isinstance(end, torch.Tensor))


def out_of_sight(value: Any) -> Iterator[torch.Tensor]:
    """The tensors that a value holds where `leaves` does not look: in a set, an iterator, a distribution, too deep."""
    open_values = [end for _, end in _ends(value) if not isinstance(end, torch.Tensor)]
    seen: set[int] = set()
    while open_values:
        one = open_values.pop()
        if isinstance(one, torch.Tensor):
            yield one
        elif id(one) not in seen and not isinstance(one, (nn.Module, type, ModuleType)):
            seen.add(id(one))
            open_values += (one.__closure__ or ()) if isinstance(one, FunctionType) else gc.get_referents(one)


def _ends(value: Any, path: Path = (), inside: frozenset[int] = frozenset()) -> Iterator[tuple[Path, Any]]:
    """The tensors of a nest, and all else in it that is not looked into, with their paths.

    Args:
        value: The nest.
        path: Where it is.
        inside: Identities of what it is inside of: objects may refer to each other in circles.
    """
    if id(value) in inside:
        return
    held = items(value) if len(inside) < _DEPTH else []
    if not held or isinstance(value, torch.Tensor):
        yield path, value
    for key, item in held:
        yield from _ends(item, (*path, key), inside | {id(value)})


def replaced(value: Any, change: Change, path: Path = (), inside: frozenset[int] = frozenset()) -> Any:
    """The same nest with `change(path, tensor)` in the place of every tensor; what does not change is not copied."""
    if isinstance(value, torch.Tensor):
        return change(path, value)
    held = items(value) if id(value) not in inside and len(inside) < _DEPTH else []
    new = [(key, item, replaced(item, change, (*path, key), inside | {id(value)})) for key, item in held]
    changed = {key: found for key, item, found in new if found is not item}
    if not changed:
        return value
    if isinstance(value, Mapping):
        return type(value)({**value, **changed})  # type: ignore[call-arg]
    if isinstance(value, (list, tuple, deque)):
        parts = [found for _, _, found in new]
        if isinstance(value, deque):
            return deque(parts, value.maxlen)
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    twin = copy.copy(value)
    for key, found in changed.items():
        object.__setattr__(twin, str(key), found)
    return twin


def items(value: Any) -> list[tuple[str | int, Any]]:
    """What a tuple, list, mapping or plain object holds, by index, key or attribute; nothing for other values."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple, deque)):
        return list(enumerate(value))
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return [(name, getattr(value, name)) for name in value.__dataclass_fields__ if hasattr(value, name)]
    return list(vars(value).items()) if _is_plain(value) else []


def _is_plain(value: Any) -> bool:
    """Whether a value is an object of a user's class, all of whose state is in its attributes."""
    home = type(value).__module__.partition(".")[0]
    known = home == "torch" or home in sys.stdlib_module_names
    return isinstance(getattr(value, "__dict__", None), dict) and not known and not isinstance(value, (nn.Module, type))


def positional_names(method: Callable[..., Any]) -> list[str]:
    """Names of the parameters of a method that can be given by position."""
    parameters = inspect.signature(method).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def named(names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str | int, Any]]:
    """Arguments by the names of their parameters (`positional_names`); by position what `*args` takes."""
    given: list[tuple[str | int, Any]] = [
        (names[index] if index < len(names) else index, value) for index, value in enumerate(args)
    ]
    return [*given, *kwargs.items()]


def replaced_arguments(
    names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any], change: Change
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with `change(path, tensor)` in the place of every tensor; paths begin as `named` says."""
    new = [replaced(value, change, (name,)) for name, value in named(names, args, kwargs)]
    return tuple(new[: len(args)]), dict(zip(kwargs, new[len(args) :], strict=True))
