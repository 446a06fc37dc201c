"""Widths that are layers of their own, by hand."""

from __future__ import annotations

import pytest

from reprune.core.widths import settled


@pytest.mark.parametrize(
    ("widths", "taken", "expected"),
    [
        (
            {"sum": [1, 2, 3, 4], "one": [1, 2], "other": [3, 4], "state": [7, 8]},
            {7, 8},
            {"one": (1, 2), "other": (3, 4)},
        ),
        # What repeats itself counts once, so that it is no wider than what it repeats.
        ({"flat": [1, 1, 2, 2], "one": [1, 2], "more": [3, 1, 2]}, (), {"flat": (1, 2), "one": (1, 2), "more": (3,)}),
        # Only the very same classes in one order are one group.
        ({"one": [1, 2], "back": [2, 1], "again": [1, 2]}, (), {"one": (1, 2), "again": (1, 2)}),
        # What is taken, or a unit of a smaller width, is left out of one.
        ({"wider": [1, 9, 4, 5, 6], "taken": [9], "wide": [9, 4, 5]}, {9}, {"wider": (1, 6), "wide": (4, 5)}),
        ({}, (), {}),
    ],
)
def test_settled(widths, taken, expected):
    found = settled(widths, taken)
    assert found == expected
    assert list(found) == list(expected)
