from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from reprune.core.criteria import Weiszfeld
from reprune.core.criteria.weiszfeld import geometric_median_of
from tests.helpers.builders import stack


@pytest.mark.parametrize(("seed", "scale"), [(0, 1.0), (1, 1e9), (2, 1e-9)])
def test_it_has_the_least_sum_of_distances(seed, scale):
    points = np.random.default_rng(seed).normal(size=(12, 3)) ** 3

    def total(x):
        return np.linalg.norm(points - x, axis=1).sum()

    found = geometric_median_of(scale * points) / scale
    best = minimize(total, points.mean(axis=0), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert total(found) <= best.fun * (1 + 1e-9)
    np.testing.assert_allclose(found, best.x, atol=1e-5)


def test_a_median_that_is_a_point_is_found_and_kept():
    points = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(geometric_median_of(points), [0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(geometric_median_of(np.ones((4, 2))), [1.0, 1.0])


def test_scores_are_distances_to_it():
    layer = stack((6,)).evidence().layers["a"]
    expected = np.linalg.norm(layer.incoming - geometric_median_of(layer.incoming), axis=1)
    np.testing.assert_allclose(Weiszfeld().rank([layer], np.random.default_rng(0)).scores, expected)


def test_a_point_holds_the_median_that_the_others_pull_less_than_it_weighs():
    # Three unit vectors away from the first point add up to one of length 2 / √1.25 − 1 = 0.79 < 1.
    points = np.array([[0.0, 0.0], [-2.0, 0.0], [1.0, 0.5], [1.0, -0.5]])
    np.testing.assert_array_equal(geometric_median_of(points), [0.0, 0.0])


def test_a_point_that_the_others_pull_harder_than_it_weighs_holds_the_median_back():
    # Three pull one way and one the other, with 2 in all, against 1: half of the way to (3 · 2/2 − 6/6) / (3/2 + 1/6).
    points = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [-6.0, 0.0]])
    np.testing.assert_allclose(geometric_median_of(points + 5.0, iterations=1), [5.6, 5.0])
