"""Ways to give a batch to a model, as they are written and as they are done, to one that says what it was given."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from reprune.core.errors import BatchWarning
from reprune.core.evidence.parts import accepted, is_row, shown, ways

Pair = namedtuple("Pair", "x y")
NESTED = ({"a": 1}, (2, 3))
BATCHES: list[tuple[Any, bool, list[Any]]] = [
    ((1, 2, 3), True, [((1, 2, 3),), (1, 2), (1,), (2,), (3,)]),
    ((1, 2, 3, 4), False, [((1, 2, 3),), ((1, 2),), (1,), (2,), (3,), (4,)]),
    # A named tuple is one input: its parts are another way to give all of it.
    (Pair(1, 2), True, [(Pair(1, 2),), (1, 2), (1,), (2,)]),
    (Pair(1, 2), False, [(1,), (2,)]),
    (NESTED, True, [(NESTED,), {"a": 1}, ({"a": 1},), (2, 3), ((2, 3),)]),
    (NESTED, False, [({"a": 1},), ((2, 3),)]),
    ({"x": 1, "Labels": 2, "z": 3, 0: 4}, True, [{"x": 1, "z": 3}, {"x": 1, "Labels": 2}, {"x": 1}, (1,), (2,), (3,)]),
    ({"x": 1, "z": 2}, False, [({"x": 1},), (1,), (2,)]),
    ({"y": 1, "class": 2}, False, [({"y": 1},), (1,), (2,)]),
    ({"class": 1, "Classes": 2, "x": 3}, False,
     [({"x": 3},), ({"class": 1, "Classes": 2},), ({"class": 1},), (1,), (2,), (3,)]),
    (7, True, []),
]  # fmt: skip


def model(*given: Any, **named: Any) -> Any:
    return named or given


@pytest.mark.parametrize(("batch", "spread", "parts"), BATCHES)
def test_parts_come_largest_first(batch: Any, spread: bool, parts: list[Any]) -> None:
    found = list(ways(batch, spread=spread))
    assert [way.forward(model, batch) for way in found] == parts
    assert [eval(way.code)(model, batch) for way in found] == parts


def test_the_first_way_that_the_model_takes_is_told() -> None:
    tried = []

    def failure(batch: Any, forward: Any) -> Exception | None:
        tried.append(batch if forward is None else forward(model, batch))
        return None if tried[-1] in wanted else ValueError("no")

    def found(forward: Any = None) -> Any:
        return accepted(model, (1, 2, 3), forward, failure, lambda error: KeyError(str(error)), spread=True)

    wanted: list[Any] = [(1, 2, 3)]
    assert found() is None
    wanted = [(1, 2)]
    with pytest.warns(BatchWarning, match=r"function does not take .*\(a tuple of an int, an int, an int\)") as told:
        assert found()(model, (4, 5, 6)) == (4, 5)
    assert "forward=lambda model, batch: model(*batch[:2])." in str(told[0].message)
    assert tried[1:] == [(1, 2, 3), ((1, 2, 3),), (1, 2)]
    with pytest.raises(KeyError, match="no") as refused:
        found(lambda model, batch: model(batch[0]))  # What the caller says is not overruled.
    assert tried[4:] == [(1,)]
    assert isinstance(refused.value.__cause__, ValueError)
    wanted = [(1,)]
    assert found(model_of_first) is model_of_first
    wanted = []
    with pytest.raises(KeyError):
        found()
    assert tried[6:] == [(1, 2, 3), ((1, 2, 3),), (1, 2), (1,), (2,), (3,)]


def model_of_first(model: Any, batch: Any) -> Any:
    return model(batch[0])


def test_rows_and_what_is_shown() -> None:
    assert [is_row(batch) for batch in ([1], (1,), Pair(1, 2), {"x": 1}, 1)] == [True, True, False, False, False]
    array = np.zeros((2, 3), np.int8)
    assert (
        shown((array, [array, [array]]))
        == "a tuple of a NumPy array (2, 3) of int8, a list of " + shown(array) + ", a list"
    )
    assert shown(torch.zeros(2, 3)) == "a tensor (2, 3) of float32"
    assert shown([0] * 9) == "a list of " + ", ".join(["an int"] * 8)
    assert shown(type("shaped", (), {"shape": (1,)})()) == "a shaped"
    assert shown({"x": {"y": {"z": 1}}}) == "{'x': {'y': a dict}}"
