"""Sizes that a model's own code takes from its attributes or off tensors: `x.view(-1, self.hidden_size)`.

While a model is traced, the integers on its modules are replaced by ones that remember where they came from, and so are
the lengths of axes that hold units. Sums and products of them remember, too. An operation that is given such an integer
as a size tells which attribute must change when units are removed, or which layers must keep equal numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from reprune.core.layers import Site
from reprune.torch.tracing.labels import Ids
from reprune.torch.tracing.location import here

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Attribute:
    """The integer at `path` below the module `owner`, and its value while the model was traced."""

    owner: str
    path: Path
    value: int

    def __str__(self) -> str:
        return ".".join(str(part) for part in ("self", *self.path)) + (f" of {self.owner}" if self.owner else "")


@dataclass(frozen=True, eq=False)
class AxisSize:
    """The length of an axis that held these labels when it was asked for."""

    labels: Ids

    @property
    def value(self) -> int:
        """The length."""
        return len(self.labels)


Term = Attribute | AxisSize


@dataclass(frozen=True)
class Expression:
    """`Σ factor · term + constant`.

    Of a product of two sizes one is taken for the number of units, the other one for a plain factor. Which is which,
    only other uses of the same sizes tell.

    Attributes:
        terms: Sizes with their factors.
        constant: What is added.
        otherwise: What it is if other factors of products are the numbers of units.
    """

    terms: Mapping[Term, Fraction]
    constant: Fraction = Fraction(0)
    otherwise: tuple[Expression, ...] = ()

    @property
    def value(self) -> Fraction:
        """What it was while the model was traced."""
        return sum((factor * term.value for term, factor in self.terms.items()), self.constant)

    @property
    def readings(self) -> tuple[Expression, ...]:
        """All that it may be, the likeliest first."""
        return (Expression(self.terms, self.constant), *self.otherwise)

    def __add__(self, other: Expression) -> Expression:
        """The sum of two sizes."""
        return _either([_sum(one, two) for one in self.readings for two in other.readings])

    def scaled(self, factor: Fraction) -> Expression:
        """A multiple, or a fraction."""
        return _either(
            [
                Expression({term: factor * one for term, one in each.terms.items()}, factor * each.constant)
                for each in self.readings
            ]
        )

    def times(self, other: Expression, value: int, other_value: int) -> Expression:
        """The product of two sizes with these values: either may be the number of units."""
        return _either([*self.scaled(Fraction(other_value)).readings, *other.scaled(Fraction(value)).readings])


def _sum(one: Expression, two: Expression) -> Expression:
    terms = {term: one.terms.get(term, Fraction(0)) + two.terms.get(term, 0) for term in {**one.terms, **two.terms}}
    return Expression({term: factor for term, factor in terms.items() if factor}, one.constant + two.constant)


def _either(readings: Sequence[Expression]) -> Expression:
    """One of several; more than a few are the product of so many sizes that the likeliest will do."""
    first, *others = readings
    return replace(first, otherwise=tuple(others[:5]))


class SizeUse(NamedTuple):
    """An expression that is the number of these labels.

    Attributes:
        expression: The expression.
        labels: The labels.
        firm: Whether it must stay so; a layer that takes states of either width needs no such size.
    """

    expression: Expression
    labels: Ids
    firm: bool


class Comparison(NamedTuple):
    """Two sizes that are equal.

    Attributes:
        first: One of them.
        second: The other one.
        steady: Whether they must stay so, because their quotient is the length of an axis that no units go from.
    """

    first: Expression
    second: Expression
    steady: bool = False


class SizesUsed(NamedTuple):
    """What a model's code does with sizes beside giving them to operations.

    Attributes:
        compared: Sizes that it found equal.
        values: Sizes with which it computes numbers, such as the root that scores are divided by, and where.
    """

    compared: list[Comparison]
    values: list[tuple[Expression, Site]]


_USED: ContextVar[SizesUsed | None] = ContextVar("used", default=None)


class SizeInt(int):
    """An integer that remembers what it was computed from."""

    expression: Expression
    quotient: Comparison | None = None

    def __new__(cls, value: int, expression: Expression) -> SizeInt:
        """An integer of this value, computed by this expression."""
        self = super().__new__(cls, value)
        self.expression = expression
        return self

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __add__(self, other: Any) -> Any:
        return (
            _sized(int(self) + other, self.expression + _expression(other))
            if isinstance(other, int)
            else int(self) + other
        )

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self + -other if isinstance(other, int) else int(self) - other

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __mul__(self, other: Any) -> Any:
        if type(other) is int:
            return _sized(int(self) * other, self.expression.scaled(Fraction(other)))
        if isinstance(other, SizeInt):
            # Of `directions * hidden` the larger one is the size, unless something tells otherwise.
            large, small = (self, other) if int(self) >= int(other) else (other, self)
            expression = large.expression.times(small.expression, int(large), int(small))
            return _sized(int(self) * int(other), expression)
        return int(self) * other

    __rmul__ = __mul__

    def __neg__(self) -> Any:
        return _sized(-int(self), self.expression.scaled(Fraction(-1)))

    def __floordiv__(self, other: Any) -> Any:
        if not isinstance(other, int) or other <= 0 or int(self) % int(other):
            return int(self) // other
        found = _sized(int(self) // int(other), self.expression.scaled(Fraction(1, int(other))))
        if isinstance(found, SizeInt) and isinstance(other, SizeInt):
            # `dim // heads`: if whole heads go, it stays, and so `dim` goes with their number.
            found.quotient = Comparison(self.expression, other.expression.scaled(Fraction(int(found))), steady=True)
        return found

    # As a number it is another one with fewer units: `scores / math.sqrt(h.size(-1))`.

    def __float__(self) -> float:
        self.used_as_value()
        return float(int(self))

    def __truediv__(self, other: Any) -> Any:
        self.used_as_value()
        return int(self) / other

    def __rtruediv__(self, other: Any) -> Any:
        self.used_as_value()
        return other / int(self)

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        self.used_as_value()
        return pow(int(self), other, modulo)

    def used_as_value(self) -> None:
        """Note that the model's code computes with it."""
        used = _USED.get()
        if used is not None:
            used.values.append((self.expression, here("value")))

    # Comparing an attribute with the length of an axis says what the attribute is the size of.

    def __eq__(self, other: object) -> bool:
        return self._compared(other) == other

    def __ne__(self, other: object) -> bool:
        return self._compared(other) != other

    def __lt__(self, other: Any) -> Any:
        return self._compared(other) < other

    def __le__(self, other: Any) -> Any:
        return self._compared(other) <= other

    def __gt__(self, other: Any) -> Any:
        return self._compared(other) > other

    def __ge__(self, other: Any) -> Any:
        return self._compared(other) >= other

    __hash__ = int.__hash__

    def _compared(self, other: Any) -> int:
        used = _USED.get()
        if used is not None and isinstance(other, int) and int(self) == int(other):
            if isinstance(other, SizeInt):
                used.compared.append(Comparison(self.expression, other.expression))
            elif self.quotient is not None:
                used.compared.append(self.quotient)
        return int(self)


def _expression(value: int) -> Expression:
    return value.expression if isinstance(value, SizeInt) else Expression({}, Fraction(value))


def _sized(value: int, expression: Expression) -> int:
    return SizeInt(value, expression) if expression.terms else int(value)


@contextmanager
def tagged_sizes(model: nn.Module) -> Iterator[SizesUsed]:
    """Replace the integers on the model's modules by `SizeInt`s, and put them back afterwards.

    Yields:
        Lists that fill with what the model's code does with them.
    """
    undo: list[tuple[Any, Any, Any]] = []
    seen: set[int] = set()
    used = SizesUsed([], [])
    token = _USED.set(used)
    try:
        for owner, module in model.named_modules():
            for container, key, path, value in _held(vars(module), (), seen, depth=5):
                undo.append((container, key, value))
                container[key] = _tagged(value, owner, path)
        yield used
    finally:
        _USED.reset(token)
        for container, key, value in reversed(undo):
            container[key] = value


# What PyTorch keeps of every module is none of its sizes.
_INTERNAL = frozenset(vars(nn.Module()))


def integers(model: nn.Module) -> Iterator[Attribute]:
    """Every integer on the modules of the model's own classes that may be a size, those of the classes included."""
    seen: set[int] = set()
    for owner, module in model.named_modules():
        kinds = [kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.")]
        if type(module) not in kinds:
            continue
        held = vars(module)
        for name, value in {name: value for kind in reversed(kinds) for name, value in vars(kind).items()}.items():
            if name not in held and is_size(value):
                yield Attribute(owner, (name,), value)
        for _, _, path, value in _held(held, (), seen, depth=5):
            for place, item in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
                if is_size(item):
                    yield Attribute(owner, path if place is None else (*path, place), int(item))


def _held(container: Any, path: Path, seen: set[int], depth: int) -> Iterator[tuple[Any, Any, Path, Any]]:
    """Integers, and tuples of them, below a module: what holds them, under which key, their path, and their value."""
    if id(container) in seen or depth == 0:
        return
    seen.add(id(container))
    for key, value in list(container.items() if isinstance(container, MutableMapping) else enumerate(container)):
        here = (*path, key)
        if key in _INTERNAL or isinstance(value, (nn.Module, type)):
            continue
        if is_size(value) or (isinstance(value, tuple) and any(is_size(item) for item in value)):
            yield container, key, here, value
        elif isinstance(value, (dict, list)):
            yield from _held(value, here, seen, depth - 1)
        elif isinstance(getattr(value, "__dict__", None), dict) and not callable(value) and path_like(value):
            yield from _held(vars(value), here, seen, depth - 1)


def _tagged(value: Any, owner: str, path: Path) -> Any:
    if isinstance(value, tuple):
        return rebuilt(value, [_tagged(item, owner, (*path, place)) for place, item in enumerate(value)])
    return SizeInt(value, Expression({Attribute(owner, path, int(value)): Fraction(1)})) if is_size(value) else value


def is_size(value: Any) -> bool:
    """Whether a value may be a number of units."""
    return (type(value) is int or isinstance(value, np.integer)) and int(value) > 1


def rebuilt(value: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    """A tuple of the same type with other items."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def path_like(value: Any) -> bool:
    """Whether a value is a plain holder of settings (a namespace, a dataclass, a config object)."""
    return not type(value).__module__.startswith(("torch", "numpy", "builtins", "collections"))


def get_size(module: nn.Module, path: Path) -> Any:
    """What stands at `path` below `module`, through attributes, mappings, lists and tuples."""
    holder: Any = module
    for key in path:
        holder = holder[key] if _is_container(holder) else getattr(holder, str(key))
    return holder


def set_size(module: nn.Module, path: Path, value: int) -> None:
    """Set the integer at `path` below `module`, through attributes, mappings, lists and tuples."""
    holder, key, new = get_size(module, path[:-1]), path[-1], value
    if isinstance(holder, tuple):
        items = list(holder)
        items[int(key)] = new
        set_size(module, path[:-1], rebuilt(holder, items))  # type: ignore[arg-type]
    elif _is_container(holder):
        holder[key] = new
    else:
        # Frozen dataclasses take no assignment; their copies are as much the model's own. Of a module it is the same.
        object.__setattr__(holder, str(key), new)


def _is_container(value: Any) -> bool:
    return isinstance(value, (MutableMapping, MutableSequence, tuple))
