"""Which attributes are sizes of which layers, from lengths of axes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from reprune.core.layers import Extent, SizeAttribute
from reprune.torch.tracing.sizes.attributes import Place, Sizes, extent
from reprune.torch.tracing.sizes.sizes import Attribute, AxisSize, Expression, SizeUse
from reprune.torch.tracing.sizes.widened import Widened

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


def test_a_product_is_read_as_what_is_known_of_its_factors() -> None:
    heads = Attribute("", ("heads",), 2)
    places = [*A, *A]
    product = SizeUse(
        Expression({heads: Fraction(8)}, otherwise=(Expression({N: Fraction(2)}),)), np.arange(8, 24), True
    )
    known = SizeUse(expression({N: 1}), np.arange(8), True)
    for uses, wanted in (([product, known], {"n"}), ([product], {"heads"}), ([known], {"n"})):
        solver = Sizes(lambda labels: [[*A, *places][label] for label in labels], UNITS)
        sizes, bonds = solver.solve(uses)
        assert {str(size.path[0]) for size in sizes} == wanted
        assert not bonds
    # An eighth of so many: `heads * 8` is twice the units.
    (size,) = Sizes(lambda labels: [[*A, *places][label] for label in labels], UNITS).solve([product])[0]
    assert (size.extent, size.times, size.divisor) == (Extent(0, (("a", 2),)), 1, 8)


PLACES = [*A, *B, *A, *B, None, None]
ON_A, ON_B, BOTH = np.arange(8), np.arange(8, 13), np.arange(13)


def bonds_of(uses: Sequence[SizeUse] = (), **more: Any) -> tuple[list[tuple[str, ...]], Sizes, Any]:
    solver = Sizes(lambda labels: [PLACES[label] for label in labels], UNITS)
    sizes, bonds = solver.solve(uses, **more)
    return bonds, solver, sizes


def test_what_must_stay_equal() -> None:
    def use(term: Any, labels: Any, factor: int = 1, firm: bool = True) -> SizeUse:
        return SizeUse(Expression({term: Fraction(factor)}), labels, firm)

    on_a, on_b = AxisSize(ON_A), AxisSize(ON_B)
    assert bonds_of([use(M, ON_A), use(M, ON_B)])[0] == [("a", "b")]
    assert bonds_of([use(M, ON_A), use(M, ON_B)])[1].shared == {frozenset("ab"): M}
    assert bonds_of([use(N, ON_A), use(M, ON_B)])[0] == []
    # The length of one layer's axis is that of another one's.
    assert bonds_of([use(on_a, ON_B)])[0] == [("a", "b")]
    assert bonds_of([use(on_a, np.arange(13, 21))])[0] == []
    assert bonds_of([use(AxisSize(BOTH), np.arange(13, 26))])[0] == []  # Both layers side by side, twice.
    assert bonds_of([use(on_a, np.concatenate([ON_A, ON_A]), 2)])[0] == []
    # Layers that take any width share a size only if something needs it.
    assert bonds_of([use(M, ON_B, firm=False)])[0] == []
    assert bonds_of([use(M, ON_B, firm=False), use(M, ON_A)])[0] == [("a", "b")]
    assert bonds_of([use(M, ON_A, firm=False), use(M, ON_A)])[0] == []
    assert bonds_of([use(on_b, ON_A, firm=False), use(M, ON_A)])[0] == []
    # What is known of a size already, or is the length of an axis, follows nothing.
    for one in (expression({N: 1}), Expression({on_a: Fraction(1)})):
        assert bonds_of([use(N, ON_A), use(M, ON_B)], steady=[(one, expression({M: 1}))])[0] == []
    # Tensors that are stacked.
    one, two = Expression({on_a: Fraction(1)}), Expression({on_b: Fraction(1)})
    assert bonds_of(level=[(one, two)])[0] == [("a", "b")]
    assert bonds_of(level=[(one, one), (one, expression({M: 1})), (one, Expression({}))])[0] == []
    assert bonds_of([use(M, ON_B)], level=[(one, expression({M: 1}))])[0] == [("a", "b")]
    # A multiple that is no whole number of units: one layer alone has nothing to stay equal to.
    found, solver, (size,) = bonds_of([use(N, np.concatenate([ON_A, ON_A]), 3)])
    assert (found, solver.shared) == ([], {frozenset("a"): N})
    assert (size.extent.layers, size.times, size.divisor) == ((("a", 2),), 1, 3)


def test_attributes_that_are_taken_as_sizes_or_follow_others() -> None:
    taken = SizeAttribute("part", ("k",), Extent(1, (("b", 2),)))
    _, _, (size,) = bonds_of(assumed=[taken])
    assert (size.owner, size.path, size.extent, size.times, size.divisor) == ("part", ("k",), taken.extent, 1, 1)
    n, half = expression({N: 1}), Attribute("", ("half",), 4)
    on_a = SizeUse(n, ON_A, True)

    def followed(one: Expression, other: Expression) -> dict[str, Any]:
        return {str(size.path[0]): size.extent.layers for size in bonds_of([on_a], steady=[(one, other)])[2]}

    alone = {"n": (("a", 1),)}
    assert followed(expression({half: 2}), n) == {**alone, "half": (("a", 1),)}
    for one, other in (
        (expression({half: 2}, 1), n), (expression({half: 2}), expression({N: 1}, 1)), (expression({half: 2, M: 1}), n),
        (expression({half: 2}), expression({N: 1, M: 1})), (expression({half: 2}), expression({M: 1})),
        (n, expression({half: 2})),
    ):  # fmt: skip
        assert followed(one, other) == alone
    # A length without units is nothing to follow.
    assert followed(expression({half: 2}), Expression({AxisSize(np.arange(26, 28)): Fraction(1)})) == alone
    # Of a length of units, as of an attribute: 12 of `half * 3` for 8 units.
    (size,) = bonds_of(steady=[(expression({half: 3}), Expression({AxisSize(ON_A): Fraction(2)}))])[2]
    assert (size.extent.layers, Fraction(size.times, size.divisor)) == ((("a", 1),), Fraction(2, 3))


def test_tensors_that_are_repeated_as_often_as_a_size() -> None:
    widened, tensor, size = Widened(), torch.zeros(2, 3, 4), expression({N: 1})
    widened.add(tensor, -1, size)
    widened.add(tensor, -2, expression({M: 1}))
    units = torch.arange(1, 5).expand(2, 3, 4)
    assert [(one, line.tolist()) for one, line in widened.meeting(tensor, units)] == [(size, [1, 2, 3, 4])]
    assert [line.tolist() for _, line in widened.meeting(tensor.view(2, 3, 4), units[0, 0])] == [[1, 2, 3, 4]]
    both = torch.arange(1, 13).view(3, 4)
    assert [(len(line), one is size) for one, line in widened.meeting(tensor, both)] == [(4, True)] * 3 + [
        (3, False)
    ] * 4
    for other in (tensor[:1], tensor[1:], tensor.view(3, 2, 4), tensor.transpose(0, 1), torch.zeros(2, 3, 4)):
        assert not list(widened.meeting(other, units))
