from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reprune.core.errors import StatisticsError
from reprune.core.evidence import moments as statistics
from reprune.core.evidence.moments import Moments, to_numpy


def moments_of(rows, name="lstm:l0"):
    moments = Moments(name, rows.shape[1])
    moments.update(rows)
    return moments


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ten_million_rows_with_a_large_mean(dtype):
    rows = np.random.default_rng(0).standard_normal((10_000_000, 2), dtype=np.float32)
    rows[:, 1] += 0.5 * rows[:, 0]
    rows = rows.astype(dtype, copy=False)
    rows += dtype(1e6)
    moments = Moments("l", 2)
    for batch in np.array_split(rows, [1, 2, 70_001, 3_000_000, 3_000_000, 9_999_999]):
        moments.update(batch)

    # The reference sees the same, rounded inputs; their distance from 1e6 is exact in double precision.
    exact = rows.astype(np.float64)
    exact -= 1e6
    mean = exact.mean(axis=0)
    exact -= mean
    covariance = exact.T @ exact / len(exact)
    assert moments.count == 10_000_000
    np.testing.assert_allclose(moments.mean, 1e6 + mean, rtol=4e-16)
    np.testing.assert_allclose(moments.covariance, covariance, rtol=1e-12, atol=1e-12)


@given(
    rows=st.integers(1, 60),
    size=st.integers(1, 5),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    order=st.randoms(use_true_random=False),
    offset=st.sampled_from([0.0, 1.0, -1e6]),
    block=st.sampled_from([1, 7, 1 << 22]),
)
def test_any_split_and_any_order_of_merging(rows, size, cuts, order, offset, block):
    data = np.random.default_rng(rows * 7 + size).normal(size=(rows, size)) + offset
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BLOCK", block)
        parts = [moments_of(part) for part in np.array_split(data, sorted(cuts))]  # some are empty
    while len(parts) > 1:
        first = parts.pop(order.randrange(len(parts)))
        parts[order.randrange(len(parts))].merge(first)
    np.testing.assert_allclose(parts[0].mean, data.mean(axis=0), rtol=1e-13, atol=1e-13)
    reference = np.atleast_2d(np.cov(data - offset, rowvar=False, ddof=0)) if rows > 1 else np.zeros((size, size))
    np.testing.assert_allclose(parts[0].covariance, reference, rtol=1e-9, atol=2e-10)


def test_states_cross_processes_and_merge():
    data = np.random.default_rng(1).normal(size=(50, 4)) + 1e3
    whole = Moments("l", 4)
    for part in np.split(data, [13, 30]):
        arrived = Moments("l", 4)
        arrived.restore(pickle.loads(pickle.dumps(moments_of(part).state())))
        whole.merge(arrived)
    np.testing.assert_allclose(whole.covariance, np.cov(data, rowvar=False, ddof=0), rtol=1e-9)


@pytest.mark.parametrize("added", ["one", "other"])
def test_those_that_came_of_each_other_go_apart(added):
    """Whatever is added to one of two leaves the other alone: merged, less nothing, or restored from a state."""
    rows, more = np.random.default_rng(0).normal(size=(2, 9, 2))
    for make in ("merge", "without", "restore"):
        one, other = moments_of(rows), Moments("l", 2)
        if make == "merge":
            other.merge(one)
        elif make == "without":
            other = one.without(other)
        else:
            other.restore(one.state())
        saved = other.state()
        grown, kept = (one, other) if added == "one" else (other, one)
        grown.update(more)
        kept.merge(Moments("l", 2))
        for found, seen in ((grown, np.concatenate([rows, more])), (kept, rows)):
            assert found.count == len(seen)
            np.testing.assert_allclose(found.mean, seen.mean(0), rtol=1e-12)
            np.testing.assert_allclose(found.covariance, np.cov(seen.T, bias=True), rtol=1e-12)
        np.testing.assert_allclose(saved["scatter"], 9 * np.cov(rows.T, bias=True), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_rows_of_any_precision(dtype):
    rows = (torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) + 3).to(dtype)
    moments = moments_of(rows)
    assert moments.mean.dtype == torch.float64
    reference = rows.double().numpy()
    np.testing.assert_allclose(moments.mean, reference.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(reference, rowvar=False, ddof=0), rtol=1e-12, atol=1e-14)


def test_numpy_half_precision():
    rows = np.linspace(0, 1, 12).astype(np.float16).reshape(6, 2)
    np.testing.assert_allclose(moments_of(rows).mean, rows.astype(np.float64).mean(axis=0), rtol=1e-14)


def test_does_not_remember_how_responses_were_computed():
    weight = torch.ones(3, requires_grad=True)
    moments = Moments("l", 3)
    for _ in range(2):
        moments.update(torch.randn(4, 3) * weight)
    assert not moments.mean.requires_grad
    assert not moments.covariance.requires_grad


def test_one_row_has_no_spread():
    moments = moments_of(np.array([[5.0, -1.0]]))
    np.testing.assert_array_equal(moments.mean, [5.0, -1.0])
    np.testing.assert_array_equal(moments.covariance, np.zeros((2, 2)))


def test_nothing_seen_names_the_layer():
    moments = moments_of(np.zeros((0, 3)), "encoder:l1")
    assert moments.count == 0
    with pytest.raises(StatisticsError, match=r"encoder:l1: no responses"):
        _ = moments.mean


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("last", [True, False])
def test_values_that_are_not_finite_name_the_layer(bad, last):
    moments = Moments("encoder:l1", 2)
    batches = [torch.ones(3, 2), torch.tensor([[0.0, bad], [0.0, 0.0]])]
    for batch in batches if last else batches[::-1]:
        moments.update(batch)
    for quantity in ("mean", "covariance"):
        with pytest.raises(StatisticsError, match=r"encoder:l1.*NaN or infinite"):
            getattr(moments, quantity)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 2)])
def test_rows_of_a_wrong_shape(shape):
    with pytest.raises(StatisticsError, match=r"l0.*expected \(rows, 2\)"):
        Moments("l0", 2).update(np.zeros(shape))


def test_merging_another_size():
    with pytest.raises(StatisticsError, match="cannot merge moments of 3 features into 2"):
        Moments("l0", 2).merge(Moments("l1", 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_to_numpy_copies(dtype):
    tensor = torch.ones(3, dtype=dtype, requires_grad=True)
    copy = to_numpy(tensor)
    copy[:] = 2.0
    assert copy.dtype == np.float64
    assert tensor.detach().float().tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("gone", [0, 1, 7, 40])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_without_some_of_the_rows(gone, offset):
    rows = np.random.default_rng(gone).normal(size=(40, 3)) + offset
    whole, part = moments_of(rows), moments_of(rows[:gone])
    rest = whole.without(part)
    assert (rest.count, whole.count, part.count) == (40 - gone, 40, gone)
    if gone < 40:
        np.testing.assert_allclose(rest.mean, rows[gone:].mean(0), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(rest.covariance, np.cov(rows[gone:].T, bias=True), rtol=1e-9, atol=1e-12)
    rest.merge(part)
    np.testing.assert_allclose(rest.covariance, np.cov(rows.T, bias=True), rtol=1e-9, atol=1e-12)


def test_many_features_of_single_precision(monkeypatch):
    """Products in single precision are good for what is known; where they overflow, double precision takes over."""
    monkeypatch.setattr(statistics, "BLOCK", 300 * 100)
    rows = (np.random.default_rng(0).normal(size=(1000, 300)) + 1e3).astype(np.float32)
    rows[:, 1] = rows[:, 0]
    rows[:, 2] += 1e5  # Its mean in single precision is some hundredths off.
    exact = rows.astype(np.float64)
    moments = moments_of(rows)
    assert moments.covariance.dtype == np.float64
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(exact, rowvar=False, ddof=0), rtol=1e-6, atol=1e-6)
    huge = rows * np.float32(1e19)
    expected = np.cov(huge.astype(np.float64), rowvar=False, ddof=0)
    np.testing.assert_allclose(moments_of(huge).covariance, expected, rtol=1e-6)
    half = moments_of(torch.from_numpy(rows).bfloat16())
    assert half.mean.dtype == torch.float64


def test_squares_that_overflow_are_no_covariance():
    with pytest.raises(StatisticsError, match="NaN or infinite"):
        _ = moments_of(torch.tensor([[1e200], [-1e200]], dtype=torch.float64)).mean
