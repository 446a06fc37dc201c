"""Integers that remember where they came from: what arithmetic makes of them, where they are kept, what asks."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reprune.torch.tracing.sizes.sizes import (
    Attribute,
    AxisSize,
    Comparison,
    Expression,
    SizeInt,
    get_size,
    integers,
    set_size,
    tagged_sizes,
)

Shape = namedtuple("Shape", ["h", "w"])


class Model(nn.Module):
    OF_CLASS, OF_TWO = 7, 1

    def __init__(self) -> None:
        super().__init__()
        self.n, self.m, self.one, self.name, self.flag = 12, 4, 1, "12", True
        self.pair, self.shape = (5, "x", 6), Shape(8, 1)
        self.held: Any = {"list": [9, [10]], "deep": [[[[11]]]], "deeper": [[[[[11]]]]]}
        self.config = SimpleNamespace(size=np.int64(13), again=self.held, rows=[[[15], [[16]]]])
        self.part = nn.Linear(3, 2)
        self.part.extra = 14
        self.call = lambda: 3


SIZES = {
    ("n",): 12, ("m",): 4, ("pair",): (5, "x", 6), ("shape",): Shape(8, 1), ("held", "list", 0): 9,
    ("held", "list", 1, 0): 10, ("config", "size"): 13,
    ("config", "rows", 0, 0, 0): 15,
}  # fmt: skip


def terms(size: Any) -> tuple[dict[str, Fraction], Fraction]:
    return {
        ".".join(map(str, term.path)): times for term, times in size.expression.terms.items()
    }, size.expression.constant


def test_every_integer_of_a_module_is_tagged_and_put_back() -> None:
    model = Model()
    before = copy.deepcopy({key: value for key, value in vars(model).items() if key not in ("call", "_modules")})
    with tagged_sizes(model):
        for path, value in SIZES.items():
            found = get_size(model, path)
            assert found == value
            assert type(found) is (type(value) if isinstance(value, tuple) else SizeInt)
            if not isinstance(value, tuple):
                assert terms(found) == ({".".join(map(str, path)): 1}, 0)
        assert [type(item) for item in (*model.pair, *model.shape)] == [SizeInt, str, SizeInt, SizeInt, int]
        assert terms(model.pair[2]) == ({"pair.2": 1}, 0)
        assert [type(value) for value in (model.one, model.flag, model.OF_CLASS)] == [int, bool, int]
        # As deep as five below the module, and no deeper.
        assert type(model.config.rows[0][1][0][0]) is int
        assert type(model.held["deep"][0][0][0][0]) is int
        ((term, _),) = model.part.in_features.expression.terms.items()
        assert (term.owner, term.path, term.value) == ("part", ("in_features",), 3)
        assert (str(term), str(next(iter(model.n.expression.terms)))) == ("self.in_features of part", "self.n")
        assert type(model.part.extra) is SizeInt
    after = {key: value for key, value in vars(model).items() if key not in ("call", "_modules")}
    assert str(after) == str(before)
    assert type(model.config.size) is np.int64
    assert all(type(value) is int for value in (model.n, model.pair[0], model.shape.h, model.part.in_features))


def test_integers_that_may_be_sizes_are_those_of_the_models_own_classes() -> None:
    found = {(one.owner, one.path): one.value for one in integers(Model())}
    wanted = {("", path): value for path, value in SIZES.items() if not isinstance(value, tuple)}
    wanted |= {("", ("pair", 0)): 5, ("", ("pair", 2)): 6, ("", ("shape", 0)): 8, ("", ("OF_CLASS",)): 7}
    assert found == wanted

    class Other(Model):
        OF_CLASS = 3

        def __init__(self) -> None:
            super().__init__()
            self.OF_TWO = 2

    found = {one.path: one.value for one in integers(Other())}
    assert (found["OF_CLASS",], found["OF_TWO",]) == (3, 2)
    assert not list(integers(nn.LSTM(3, 4)))


def test_sizes_are_set_where_they_stand() -> None:
    model = Model()
    for k, path in enumerate([("n",), ("pair", 2), ("shape", 0), ("held", "list", 1, 0), ("config", "size")]):
        set_size(model, path, 30 + k)
        assert get_size(model, path) == 30 + k
    assert (model.pair, model.shape) == ((5, "x", 31), Shape(32, 1))
    assert type(model.shape) is Shape
    model.rows = [(1, 2), torch.Size((3, 4))]
    set_size(model, ("rows", 1, 0), 9)
    assert model.rows == [(1, 2), (9, 4)]


N, M = Attribute("", ("n",), 12), Attribute("", ("m",), 4)


def sizes() -> tuple[SizeInt, SizeInt]:
    return tuple(SizeInt(term.value, Expression({term: Fraction(1)})) for term in (N, M))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("make", "value", "factors", "constant"),
    [
        (lambda n, m: n + m, 16, {"n": 1, "m": 1}, 0),
        (lambda n, m: 3 + n, 15, {"n": 1}, 3),
        (lambda n, m: n - 5, 7, {"n": 1}, -5),
        (lambda n, m: n - m, 8, {"n": 1, "m": -1}, 0),
        (lambda n, m: 20 - n, 8, {"n": -1}, 20),
        (lambda n, m: -n, -12, {"n": -1}, 0),
        (lambda n, m: 2 * n + 1, 25, {"n": 2}, 1),
        (lambda n, m: (n + 3) * 2, 30, {"n": 2}, 6),
        (lambda n, m: n // 3, 4, {"n": Fraction(1, 3)}, 0),
        (lambda n, m: (n + 6) // 3, 6, {"n": Fraction(1, 3)}, 2),
        (lambda n, m: n * m, 48, {"n": 4}, 0),
        (lambda n, m: m * n, 48, {"n": 4}, 0),
        (lambda n, m: n // m, 3, {"n": Fraction(1, 4)}, 0),
        (lambda n, m: 2 * n - n, 12, {"n": 1}, 0),
        (lambda n, m: sum([n, m]), 16, {"n": 1, "m": 1}, 0),
    ],
)
def test_sums_and_products(make: Any, value: int, factors: dict[str, Any], constant: int) -> None:
    found = make(*sizes())
    assert int(found) == value
    assert terms(found) == (factors, constant)
    assert found.expression.value == value
    assert hash(found) == hash(value)


def test_what_is_no_size_is_a_plain_number() -> None:
    n, m = sizes()
    for found, wanted in (
        (n - n, 0), (n + 0.5, 12.5), (n - 0.5, 11.5), (n * 0.5, 6.0), (0.5 * n, 6.0), (n // 5, 2), (n // 2.5, 4.0),
        (n // -4, -3), (n / 8, 1.5), (6 / n, 0.5), (m**2, 16), (m**-1, 0.25), (pow(m, 2, 3), 1), (float(n), 12.0),
        (m // n, 0),
    ):  # fmt: skip
        assert found == wanted
        assert type(found) is type(wanted)
    with pytest.raises(ZeroDivisionError):
        n // 0
    copied = [copy.deepcopy(n), pickle.loads(pickle.dumps(n))]
    assert copied == [12, 12]
    assert [type(one) for one in copied] == [int, int]


def test_a_product_may_be_either_of_its_factors() -> None:
    n, m = sizes()
    readings = [
        ({str(term.path[0]): times for term, times in one.terms.items()}, one.constant)
        for one in (n * m).expression.readings
    ]
    assert readings == [({"n": 4}, 0), ({"m": 12}, 0)]
    more = ((n * m) + 1 + (m * n)).expression
    assert more.readings[0] == Expression({N: Fraction(8)}, Fraction(1))
    assert len(more.readings) == 4
    assert {one.value for one in more.readings} == {97}
    assert [one.value for one in (n * m * n).expression.readings] == [576] * 3
    assert len((n * m + n * m + n * m).expression.readings) == 6  # Of eight.


def test_what_is_asked_and_computed_is_noted() -> None:
    model = Model()
    with tagged_sizes(model) as used:
        n, m, two = model.n, model.m, model.part.out_features
        plain = SizeInt(12, Expression({AxisSize(np.arange(12)): Fraction(1)}))
        answers = [n == plain, n != plain, n < plain, n <= plain, n > plain, n >= plain]
        assert answers == [True, False, False, True, False, True]
        assert [(one.first, one.second, one.steady) for one in used.compared] == [
            (n.expression, plain.expression, False)
        ] * 6
        assert [n == 5, n != 5, n < 13, n <= 11, n > 11, n >= 13, n == 12, n == "12", n == m] == [
            False, True, True, False, True, False, True, False, False,
        ]  # fmt: skip
        assert len(used.compared) == 6
        # A quotient of two sizes that is asked for its value: the one goes with the other, so that it stays.
        heads = n // two
        assert heads == 6
        assert used.compared[6:] == [Comparison(n.expression, two.expression.scaled(Fraction(6)), True)]
        assert not used.values
        for compute in (lambda: n / 2, lambda: 2 / n, lambda: n**2, lambda: float(n)):
            compute()
        assert [expression for expression, _ in used.values] == [n.expression] * 4
        assert all(site.operation == "value" and __file__ in site.location for _, site in used.values)
    n / 2
    assert n == plain
    assert (len(used.values), len(used.compared)) == (4, 7)
