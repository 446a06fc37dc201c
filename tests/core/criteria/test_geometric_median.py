from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from reprune.core.criteria import geometric_median
from reprune.core.criteria.geometric_median import GeometricMedian, distance_sums
from tests.helpers.builders import stack

RNG = np.random.default_rng(0)


def reference(points):
    exact = np.asarray(points, dtype=np.float64)
    return cdist(exact, exact).sum(axis=1)


def near_duplicates(spread, clusters=5, each=4, size=300, offset=0.0):
    centres = RNG.normal(size=(clusters, size)) + offset
    return np.repeat(centres, each, axis=0) + spread * RNG.normal(size=(clusters * each, size))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [0.0, 1e-8, 1e-6, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_near_duplicates(dtype, spread, offset):
    points = near_duplicates(spread, offset=offset).astype(dtype)
    for array in (points, torch.from_numpy(points), torch.from_numpy(points).requires_grad_()):
        np.testing.assert_allclose(distance_sums(array), reference(points), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [1e-6, 1e-3])
def test_one_cloud_of_near_duplicates(dtype, spread):
    points = near_duplicates(spread, clusters=1, each=20, offset=1.0).astype(dtype)
    gram = points @ points.T
    squares = gram.diagonal()[:, None] + gram.diagonal()[None, :] - 2 * gram
    if dtype == np.float32 and spread == 1e-6:  # what goes wrong without care
        naive = np.sqrt(np.clip(squares, 0, None)).sum(axis=1)
        assert np.max(np.abs(naive / reference(points) - 1)) > 0.5
    np.testing.assert_allclose(distance_sums(points), reference(points), rtol=1e-6)


def test_one_pair_among_many():
    points = RNG.normal(size=(40, 100)).astype(np.float32)
    points[7] = points[3] + np.float32(1e-5) * RNG.normal(size=100).astype(np.float32)
    np.testing.assert_allclose(distance_sums(points), reference(points), rtol=1e-6)


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from([1e-12, 1.0, 1e12]))
def test_any_points(count, size, seed, scale):
    rng = np.random.default_rng(seed)
    points = (rng.integers(-2, 3, size=(count, size)) + 1e-7 * rng.normal(size=(count, size))) * scale
    for dtype in (np.float32, np.float64):
        exact = reference(points.astype(dtype))
        np.testing.assert_allclose(distance_sums(points.astype(dtype)), exact, rtol=1e-5, atol=1e-7 * scale)


def test_silenced_units_are_tied():
    points = RNG.normal(size=(130, 1001)).astype(np.float32)
    points[43:] = points[43]  # so many that the product is formed in blocks, which round differently
    sums = distance_sums(points)
    np.testing.assert_allclose(sums, reference(points), rtol=1e-6)
    np.testing.assert_allclose(sums[43:], sums[43], rtol=1e-14)


def test_duplicated_units_go_by_index():
    model = stack((6,))
    for name in ("a.w_ih", "a.w_hh"):
        rows = model.tensors[name].reshape(4, 6, -1)
        rows[:, [1, 4, 5]] = 0.1
    ranking = GeometricMedian().rank([model.evidence().layers["a"]], np.random.default_rng(0))
    assert ranking.order.tolist()[:3] == [1, 4, 5]


def test_scores_are_sums_of_distances_between_gate_rows():
    layer = stack((8, 5)).evidence().layers["b"]
    ranking = GeometricMedian().rank([layer], np.random.default_rng(0))
    np.testing.assert_allclose(ranking.scores, reference(layer.incoming), rtol=1e-12)
    np.testing.assert_array_equal(ranking.order, np.argsort(reference(layer.incoming)))


def test_the_unit_in_the_middle_goes_first():
    points = np.array([[0.0, 1.0], [1.0, 0.0], [0.1, 0.1], [-1.0, 0.0], [0.0, -1.0]])
    assert int(np.argmin(distance_sums(points))) == 2


@pytest.mark.parametrize(("apart", "near"), [(1.0, False), (0.3, False), (0.03, True), (1e-4, True)])
def test_single_precision_is_enough_unless_a_pair_is_near(apart, near):
    # Two points at a distance that is a share of √(‖a‖² + ‖b‖²), and others at right angles to them.
    points = np.eye(6, dtype=np.float32)
    points[1] = [np.cos(apart * np.sqrt(2)), np.sin(apart * np.sqrt(2)), 0, 0, 0, 0]
    assert geometric_median._too_near(*geometric_median._squared_distances(points)) == near


def test_points_stay_on_a_device_in_double_precision_and_others_become_arrays_as_they_are():
    """A device without data stands for a GPU."""
    placed = geometric_median._placed(torch.zeros(3, 2, device="meta", requires_grad=True))
    assert (placed.device.type, placed.dtype, placed.requires_grad) == ("meta", torch.float64, False)
    placed = geometric_median._placed(torch.zeros(3, 2))
    assert isinstance(placed, np.ndarray)
    assert placed.dtype == np.float32


def test_on_a_device(monkeypatch):
    """What a GPU computes, on a CPU: PyTorch in double precision from start to end."""
    monkeypatch.setattr(geometric_median, "_placed", lambda points: points.double())
    points = near_duplicates(1e-4).astype(np.float32)
    np.testing.assert_allclose(distance_sums(torch.from_numpy(points)), reference(points), rtol=1e-6)
