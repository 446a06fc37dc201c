"""The line search between allocations finds a valley that was planted, and the best of what it tried."""

from __future__ import annotations

import numpy as np
import pytest

from reprune.core.split import search, times


def flat(parts):
    return np.concatenate(parts)


def test_times_are_shares_of_all_units_gone():
    found = times([np.array([1.0, 4.0]), np.array([2.0, 3.0]), np.array([5.0])], [1, 3, 2])
    for of, expected in zip(found, ([0.5, 7.5], [2.5, 5.5], [9.0]), strict=True):
        np.testing.assert_allclose(of, np.array(expected) / 10)


@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("line", [0, 1])
def test_a_planted_valley_is_found(place, line):
    origin, ends = [np.zeros(2), np.zeros(1)], [[np.ones(2), np.zeros(1)], [np.zeros(2), np.ones(1)]]
    bottom = [(1 - place) * a + place * b for a, b in zip(origin, ends[line], strict=True)]
    tried = []

    def measure(split):
        tried.append(split)
        return float(np.sum((flat(split) - flat(bottom)) ** 2))

    best = search(origin, ends, measure)
    assert abs(flat(best) - flat(bottom)).max() <= 1 / 8
    assert len(tried) <= 8


@pytest.mark.parametrize(
    ("place", "places"),
    [
        # Beside the best split the wider gap is halved, and of equal gaps the one to the lower neighbour.
        (0.3, [0.25, 0.375, 0.125]),
        (0.45, [0.25, 0.75, 0.375]),
        (0.9, [0.75, 0.875, 0.9375]),
        (1.0, [0.75, 0.875, 0.9375]),
    ],
)
def test_the_valley_is_halved(place, places):
    tried = []

    def measure(split):
        tried.append((float(split[0][0]) - 2) / 8)
        return (tried[-1] - place) ** 2

    search([np.array([2.0])], [[np.array([10.0])]], measure)
    assert tried == [0.0, 1.0, 0.5, *places]


@pytest.mark.parametrize("height", [0.0, 2.0])
def test_a_flat_valley_is_not_searched(height):
    tried = []
    search([np.zeros(1)], [[np.ones(1)], [-np.ones(1)]], lambda split: tried.append(float(split[0][0])) or height)
    assert tried == [0.0, 1.0, 0.5, -1.0, -0.5]


def test_it_is_never_worse_than_the_ends():
    rng = np.random.default_rng(0)
    origin, ends = [np.zeros(1)], [[np.ones(1)], [-np.ones(1)]]
    for _ in range(20):
        heights = {}

        def measure(split, heights=heights):
            return heights.setdefault(float(split[0][0]), float(rng.random()))

        best = search(origin, ends, measure)
        assert heights[float(best[0][0])] == min(heights.values())
        assert {0.0, 1.0, -1.0} <= set(heights)
