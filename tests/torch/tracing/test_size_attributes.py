"""Which attributes are sizes of which layers, from lengths of axes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from reprune.core.layers import Extent
from reprune.torch.tracing.sizes.attributes import Place, Sizes, extent
from reprune.torch.tracing.sizes.sizes import Attribute, Expression, SizeUse

UNITS = {"a": 8, "b": 5}
A, B = ([(name, unit) for unit in range(UNITS[name])] for name in UNITS)
N, M = Attribute("", ("n",), 8), Attribute("", ("m",), 5)


def solved(*uses: tuple[Mapping[Attribute, int], int, Sequence[Place]], steady: Any = ()) -> tuple[dict[str, Any], Any]:
    """What each attribute is: layers with their factors, what is fixed, times, divisor; and the bonds."""
    places = [place for _, _, axis in uses for place in axis]
    found, ends = [], np.cumsum([len(axis) for _, _, axis in uses])
    for (terms, constant, _), labels in zip(uses, np.split(np.arange(len(places)), ends[:-1]), strict=True):
        found.append(SizeUse(expression(terms, constant), labels, True))
    sizes, bonds = Sizes(lambda labels: [places[label] for label in labels], UNITS).solve(found, steady=steady)
    return {
        str(size.path[0]): (dict(size.extent.layers), size.extent.fixed, size.times, size.divisor) for size in sizes
    }, bonds


def expression(terms: Mapping[Attribute, int], constant: int = 0) -> Expression:
    return Expression({term: Fraction(factor) for term, factor in terms.items()}, Fraction(constant))


def test_length_of_an_axis() -> None:
    assert extent([*A, None, *B, *B, None], UNITS) == Extent(2, (("a", 1), ("b", 2)))
    assert extent([("a", 0), ("a", 3), None], UNITS) == Extent(3, ())  # Two of eight units are no layer.


@pytest.mark.parametrize(
    ("terms", "constant", "axis", "wanted"),
    [
        ({N: 1}, 0, A, {"n": ({"a": 1}, 0, 1, 1)}),
        ({N: 1}, 2, [*A, None, None], {"n": ({"a": 1}, 0, 1, 1)}),
        ({N: 2}, 0, [*A, *A], {"n": ({"a": 2}, 0, 1, 2)}),
        ({N: 1, M: 1}, 0, [*A, *B], {"n": ({"a": 1}, 0, 1, 1), "m": ({"b": 1}, 0, 1, 1)}),
        ({M: 1, N: 1}, 0, [*A, *B], {"n": ({"a": 1}, 0, 1, 1), "m": ({"b": 1}, 0, 1, 1)}),
        ({N: 1, M: 1}, 3, [*A, None, None, None, *B], {"n": ({"a": 1}, 0, 1, 1), "m": ({"b": 1}, 0, 1, 1)}),
        ({N: 1, M: 1}, 1, [*A, *B], {}),  # The parts are longer than the axis.
        ({N: 1}, 0, [None] * 8, {}),
    ],
)
def test_what_a_size_is_the_length_of(
    terms: Mapping[Attribute, int], constant: int, axis: Sequence[Place], wanted: Mapping[str, Any]
) -> None:
    assert solved((terms, constant, axis)) == (wanted, [])


def test_layers_of_one_size_keep_equal_numbers() -> None:
    found, bonds = solved(({M: 1}, 0, B), ({M: 1}, 0, [("a", unit) for unit in range(8)]))
    assert list(found) == ["m"]
    assert bonds == [("a", "b")]


def test_a_multiple_follows() -> None:
    other = Attribute("", ("half",), 4)
    found, _ = solved(({N: 1}, 0, A), steady=[(expression({other: 2}), expression({N: 1}))])
    layers, fixed, times, divisor = found["half"]
    # Of `a` units left, so many: half of them.
    assert (layers, fixed, Fraction(times, divisor)) == ({"a": 1}, 0, Fraction(1, 2))
