"""Tensors in nests: found by their paths, put in each other's places, and what is out of sight there."""

from __future__ import annotations

from collections import UserDict, deque, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reprune.torch.tracing.leaves import items, leaves, named, out_of_sight, positional_names, replaced_arguments
from reprune.torch.tracing.leaves import replaced as replaced_in

Pair = namedtuple("Pair", ["h", "c"])


@dataclass(frozen=True)
class Frozen:
    h: Tensor
    late: Any = None


class Plain:
    """An object of a user's class."""

    def __init__(self, h: Tensor) -> None:
        self.h, self.note = h, "text"


class Slots:
    __slots__ = ("h",)

    def __init__(self, h: Tensor) -> None:
        self.h = h


H = [torch.full((2,), float(k)) for k in range(6)]


def add(path: Any, tensor: Tensor) -> Tensor:
    return tensor + 10


@pytest.mark.parametrize(
    ("nest", "paths"),
    [
        (H[0], [()]),
        ((H[0], [H[1], "x"], {"a": H[2], 3: (H[3],)}), [(0,), (1, 0), (2, "a"), (2, 3, 0)]),
        (Pair(H[0], deque([H[1], None], maxlen=2)), [(0,), (1, 0)]),
        (Frozen(H[0], Plain(H[1])), [("h",), ("late", "h")]),
        (UserDict(a=H[0]), [("a",)]),
        ([[[[[H[0]]]]]], [(0,) * 5]),
        ([[[[[[H[0]]]]]]], [(0,) * 6]),
        ([[[[[[[H[0]]]]]]]], []),
    ],
)
def test_tensors_have_paths_and_can_be_replaced(nest: Any, paths: list[tuple[Any, ...]]) -> None:
    found = list(leaves(nest))
    assert [path for path, _ in found] == paths
    assert all(tensor is H[k] for k, (_, tensor) in enumerate(found))
    other = replaced_in(nest, add)
    assert type(other) is type(nest)
    assert [(path, tensor.tolist()) for path, tensor in leaves(other)] == [
        (path, [k + 10.0] * 2) for k, path in enumerate(paths)
    ]
    assert [tensor is H[k] for k, (_, tensor) in enumerate(leaves(nest))] == [True] * len(paths)
    assert replaced_in(nest, lambda path, tensor: tensor) is nest


def test_what_does_not_change_is_the_same_object() -> None:
    nest = {"change": [H[0]], "stay": [H[1]], "window": deque([H[2]], maxlen=3)}
    other = replaced_in(nest, lambda path, tensor: tensor * 2 if path[0] != "stay" else tensor)
    assert other["stay"] is nest["stay"]
    assert other["window"].maxlen == 3
    held: Any = Plain(H[1])
    held.me = held
    twin = replaced_in(held, add)
    assert (twin.note, twin.me, twin.h.tolist(), held.h.tolist()) == ("text", held, [11, 11], [1, 1])


def test_what_holds_nothing() -> None:
    for value in (3, "text", None, {1, 2}, SimpleNamespace(h=1), nn.Linear(2, 2), Plain, Frozen, torch.Generator()):
        assert items(value) == [], value
    partly = object.__new__(Frozen)  # As unpickled by an older version.
    object.__setattr__(partly, "h", 1)
    assert items(partly) == [("h", 1), ("late", None)]
    del partly.__dict__["h"]
    assert items(partly) == [("late", None)]


def test_arguments_go_by_the_names_of_their_parameters() -> None:
    def method(x: Any, /, h: Any = None, *rest: Any, key: Any = None, **more: Any) -> None: ...

    names = positional_names(method)
    assert names == ["x", "h"]
    assert named(names, (1, 2, 3), {"key": 4}) == [("x", 1), ("h", 2), (2, 3), ("key", 4)]
    seen = []

    def change(path: Any, tensor: Tensor) -> Tensor:
        seen.append(path)
        return tensor + 10

    args, kwargs = replaced_arguments(names, (H[0], (H[1], 5), H[2]), {"key": {"s": H[3]}, "other": 1}, change)
    assert seen == [("x",), ("h", 0), (2,), ("key", "s")]
    assert (args[0][0], args[1][0][0], args[1][1], args[2][0]) == (10, 11, 5, 12)
    assert (kwargs["key"]["s"][0], kwargs["other"]) == (13, 1)


def test_tensors_out_of_sight() -> None:
    h, net = torch.zeros(3), nn.Linear(2, 2)

    def generator() -> Any:
        held = [h]
        yield 1
        yield held

    started = generator()
    next(started)
    circle: list[Any] = [{h}]
    circle.append(circle)
    hidden: list[Any] = [
        {h}, frozenset({h}), iter([h]), started, lambda: h, SimpleNamespace(a=[h]), Slots(h),
        torch.distributions.Normal(h, 1.0), [[[[[[[h]]]]]]], (h, {"a": {h}}, 3), circle, UserDict(a={h}),
    ]  # fmt: skip
    for value in hidden:
        assert any(tensor is h for tensor in out_of_sight(value)), value
    for seen in (h, (h, [h]), {"h": h}, net, (net, type(h), torch, 3, "text"), lambda: net, SimpleNamespace(a=net)):
        assert not list(out_of_sight(seen)), seen
