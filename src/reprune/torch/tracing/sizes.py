"""Sizes that a model's own code takes from its attributes: `x.view(-1, self.hidden_size)`.

While a model is traced, the integers on its modules are replaced by ones that remember where they came from. An
operation that is given such an integer as a size tells which attribute must change when units are removed.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Expression:
    """`factor * attribute`, the attribute being the integer at `path` below the module `owner`."""

    owner: str
    path: Path
    factor: Fraction = Fraction(1)


class SizeInt(int):
    """An integer that remembers the attribute it was computed from."""

    expression: Expression | None

    def __new__(cls, value: int, expression: Expression | None) -> SizeInt:
        """An integer of this value, computed by this expression."""
        self = super().__new__(cls, value)
        self.expression = expression
        return self

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __mul__(self, other: Any) -> Any:
        if type(other) is int:
            if other == 0:
                return 0  # The first of several slices, `0 * n`: no size of anything.
            return self._scaled(int(self) * other, Fraction(other))
        if isinstance(other, SizeInt):
            # Of `directions * hidden` the larger one is the size.
            large, small = (self, other) if int(self) >= int(other) else (other, self)
            return large._scaled(int(self) * int(other), Fraction(int(small)))
        return int(self) * other

    __rmul__ = __mul__

    def __neg__(self) -> Any:
        return self._scaled(-int(self), Fraction(-1))

    def __floordiv__(self, other: Any) -> Any:
        if isinstance(other, int) and other > 0 and int(self) % int(other) == 0:
            return self._scaled(int(self) // int(other), Fraction(1, int(other)))
        return int(self) // other

    def _scaled(self, value: int, factor: Fraction) -> SizeInt:
        found = self.expression
        return SizeInt(value, found and Expression(found.owner, found.path, found.factor * factor))


@contextmanager
def tagged_sizes(model: nn.Module) -> Iterator[None]:
    """Replace the integers on the model's modules by `SizeInt`s, and put them back afterwards."""
    undo: list[tuple[Any, Any, int]] = []
    seen: set[int] = set()
    try:
        for owner, module in model.named_modules():
            _tag(vars(module), owner, (), undo, seen, depth=3)
        yield
    finally:
        for container, key, value in reversed(undo):
            container[key] = value


def _tag(container: Any, owner: str, path: Path, undo: list[Any], seen: set[int], depth: int) -> None:
    if id(container) in seen or depth == 0:
        return
    seen.add(id(container))
    items = list(container.items() if isinstance(container, MutableMapping) else enumerate(container))
    for key, value in items:
        if type(value) is int and value > 1 and not (isinstance(key, str) and key.startswith("_")):
            undo.append((container, key, value))
            container[key] = SizeInt(value, Expression(owner, (*path, key)))
        elif isinstance(value, (nn.Module, type)) or (isinstance(key, str) and key.startswith("_")):
            continue
        elif isinstance(value, (dict, list)):
            _tag(value, owner, (*path, key), undo, seen, depth - 1)
        elif isinstance(getattr(value, "__dict__", None), dict) and not callable(value) and path_like(value):
            _tag(vars(value), owner, (*path, key), undo, seen, depth - 1)


def path_like(value: Any) -> bool:
    """Whether a value is a plain holder of settings (a namespace, a dataclass, a config object)."""
    return not type(value).__module__.startswith(("torch", "numpy", "builtins", "collections"))


def set_size(module: nn.Module, path: Path, value: int) -> None:
    """Set the integer at `path` below `module`, through attributes, mappings and lists."""
    holder: Any = vars(module)
    for key in path[:-1]:
        holder = holder[key] if _is_container(holder) else vars(holder)[key]
    if _is_container(holder):
        holder[path[-1]] = value
    else:
        setattr(holder, str(path[-1]), value)


def _is_container(value: Any) -> bool:
    return isinstance(value, (MutableMapping, MutableSequence))
