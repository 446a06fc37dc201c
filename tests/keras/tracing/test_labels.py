"""Labels, and their coupling."""

from __future__ import annotations

import numpy as np

from reprune.core.layers import Extent
from reprune.keras.tracing.labels import Couplings, extent_of


def test_labels_that_are_coupled_have_one_class() -> None:
    couplings = Couplings()
    first, second, third = couplings.new(3, "first"), couplings.new(3), couplings.new(2, "third")
    assert [labels.tolist() for labels in (first, second, third)] == [[1, 2, 3], [4, 5, 6], [7, 8]]
    # A position that names nothing, or is padding, couples with nothing.
    couplings.union(np.array([6, 0, -1, 4, 5]), np.array([3, 2, 1, 4, 7]))
    couplings.union(np.array([8, 2]), np.array([5, 0]))
    assert couplings.roots(np.arange(-1, 9)).tolist() == [0, 0, 1, 2, 3, 4, 5, 3, 5, 5]
    assert couplings.classes() == {
        1: [("first", 0)], 2: [("first", 1)], 3: [("first", 2)], 5: [("third", 0), ("third", 1)],
    }  # fmt: skip
    assert [couplings.member(label) for label in (-1, 0, 1, 6, 8)] == [None, None, ("first", 0), None, ("third", 1)]
    couplings.name(second[:2], "second")
    assert couplings.member(5) == ("second", 1)
    assert couplings.classes()[4] == [("second", 0)]
    # Long chains.
    many = couplings.new(50)
    for one, other in zip(many[::-1][:-1], many[::-1][1:], strict=True):
        couplings.union(np.array([one]), np.array([other]))
    assert set(couplings.roots(many).tolist()) == {int(many[0])}


def test_the_length_of_an_axis_follows_the_units() -> None:
    units = [("a", 0), None, ("a", 1), ("a", 0), ("a", 1), ("b", 0)]
    extent = extent_of(units, {"a": 2, "b": 3})
    # Twice the units of one, a position of nobody, and one unit of three of the other, which cannot go.
    assert extent == Extent(2, (("a", 2),))
    assert extent({"a": 1, "b": 3}) == 4
