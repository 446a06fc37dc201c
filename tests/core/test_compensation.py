"""Folds against a direct least-squares solve on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest

from reprune.core.errors import CalibrationWarning
from reprune.core.evidence.readings import Reading, SecondMoments, SplitMoments, readings
from reprune.core.folding.compensation import COMPENSATIONS, RIDGE_UNSEEN, RIDGES, held_out, predict
from reprune.core.layers import Consumer, Slot, Span
from tests.helpers.builders import stack


def reading_of(rows, *, bias, outputs=3):
    split = SplitMoments("w", rows.shape[1])
    split.update(rows)
    slot = Slot("w", 1, rows.shape[1], "reads", (Span(0, "a", 0, rows.shape[1]),))
    weight = np.random.default_rng(9).normal(size=(outputs, rows.shape[1]))
    return Reading(Consumer("w", 1, "b" if bias else None), slot, split.halves, weight)


def rows_of(count, seed=0, features=9):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, features)) @ rng.normal(size=(features, features)) + rng.normal(size=features)


@pytest.mark.parametrize("bias", [True, False])
def test_prediction_without_ridge_is_the_least_squares_solution(bias, monkeypatch):
    monkeypatch.setattr("reprune.core.folding.compensation.RIDGES", (0.0,))
    rows = rows_of(20_000)
    gone, stay = np.array([1, 4, 5]), np.array([0, 2, 3, 6, 7, 8])
    coefficients, offsets = predict(reading_of(rows, bias=bias), gone, stay, {})
    design = np.column_stack([rows[:, stay], np.ones(len(rows))]) if bias else rows[:, stay]
    solution = np.linalg.lstsq(design, rows[:, gone], rcond=None)[0]
    np.testing.assert_allclose(coefficients, solution[: len(stay)].T, rtol=1e-9, atol=1e-10)
    expected = solution[-1] if bias else np.zeros(3)
    np.testing.assert_allclose(offsets, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_held_out_error_is_that_of_predicting_the_other_half(scale):
    rows = scale * rows_of(400, seed=3)
    first, second = rows[:150], rows[150:]
    gone, stay = np.array([0, 8]), np.arange(1, 8)

    def moments(part):
        return SecondMoments(part.mean(0), np.cov(part.T, bias=True))

    found = held_out(moments(first), moments(second), gone, stay)
    about = second[:, gone] - first[:, gone].mean(0)
    for ridge, error in zip(RIDGES, found, strict=True):
        centred = first - first.mean(0)
        inner = centred[:, stay].T @ centred[:, stay] / len(first)
        level = ridge * np.trace(inner) / len(stay)
        coefficients = np.linalg.solve(
            inner + level * np.eye(len(stay)), centred[:, stay].T @ centred[:, gone] / len(first)
        )
        predicted = (second[:, stay] - first[:, stay].mean(0)) @ coefficients
        expected = np.mean(np.sum((about - predicted) ** 2 - about**2, axis=1))
        assert error == pytest.approx(expected, rel=1e-8)


def test_few_rows_ask_for_a_larger_ridge_than_many():
    def held(count):
        rows = np.random.default_rng(5).normal(size=(count, 40))
        rows[:, :20] += 3 * rows[:, 20:]
        reading = reading_of(rows, bias=True)
        gone, stay = np.arange(10), np.arange(10, 40)
        first, second = reading.halves
        return int(np.argmin(np.add(held_out(first, second, gone, stay), held_out(second, first, gone, stay))))

    assert held(50) > held(50_000)


def test_mean_compensation_moves_the_bias_alone():
    model = stack((4, 3))
    rng = np.random.default_rng(2)
    responses = {name: rng.normal(2.0, 1.0, size=(50, layer.units)) for name, layer in model.structure.layers.items()}
    moments = {name: layer.moments for name, layer in model.evidence(responses).layers.items()}
    found = readings(model.structure, model.tensors, moments, {})
    first = next(iter(responses))
    kept = {name: list(range(layer.units)) for name, layer in model.structure.layers.items()} | {first: [0, 2]}
    folds = COMPENSATIONS["mean"](model.structure, kept, found, {})
    assert [fold.tensor for fold in folds] == ["a.w_hh", "b.w_ih"]
    for fold in folds:
        coefficients, offsets = fold.arrays(2, 2)
        assert not coefficients.any()
        expected = responses[first].mean(0)[[1, 3]] if fold.bias is not None else np.zeros(2)
        np.testing.assert_allclose(offsets, expected, rtol=1e-12)


def test_too_few_rows_are_reported():
    model = stack((4, 3))
    rng = np.random.default_rng(2)
    responses = {name: rng.normal(size=(2, layer.units)) for name, layer in model.structure.layers.items()}
    moments = {name: layer.moments for name, layer in model.evidence(responses).layers.items()}
    with pytest.warns(CalibrationWarning, match="2 rows of 4 features"):
        readings(model.structure, model.tensors, moments, {})


def test_a_single_row_holds_nothing_out():
    reading = reading_of(rows_of(1), bias=True)
    assert reading.halves is None
    coefficients, _ = predict(reading, np.array([0]), np.arange(1, 9), {})
    np.testing.assert_array_equal(coefficients, np.zeros((1, 8)))


def test_the_ridge_is_a_share_of_the_mean_variance_and_is_found_once():
    rows = rows_of(60, seed=16)
    reading, gone, stay = reading_of(rows, bias=True), np.array([0, 8]), np.arange(1, 8)
    ridges = {reading.exact_source: 0.25}
    coefficients, offsets = predict(reading, gone, stay, ridges)
    centred = rows - rows.mean(0)
    # Least squares with as many rows more as there are features, which pull at the coefficients.
    pull = np.sqrt(0.25 * np.mean(np.sum(centred[:, stay] ** 2, axis=0))) * np.eye(7)
    wanted = np.linalg.lstsq(np.vstack([centred[:, stay], pull]), np.vstack([centred[:, gone], np.zeros((7, 2))]))[0].T
    np.testing.assert_allclose(coefficients, wanted, rtol=1e-9)
    np.testing.assert_allclose(offsets, rows.mean(0)[gone] - wanted @ rows.mean(0)[stay], rtol=1e-9)
    assert ridges == {reading.exact_source: 0.25}
    # Where none is known yet, the one whose errors on either half, fitted on the other, are the smallest together.
    first, second = reading.halves
    errors = [held_out(first, second, gone, stay), held_out(second, first, gone, stay)]
    best = min(range(len(RIDGES)), key=lambda k: errors[0][k] + errors[1][k])
    assert best not in (*map(int, np.argmin(errors, axis=1)), 0, len(RIDGES) - 1)
    ridges = {}
    predict(reading, gone, stay, ridges)
    assert ridges == {reading.exact_source: RIDGES[best]}


def test_features_that_never_change_predict_nothing():
    """Nor do none at all; the offset is the mean then. Without anything held out, the ridge is a ten-thousandth."""
    rows = rows_of(50)
    rows[:, 2:] = 3.0
    moments = SecondMoments(rows.mean(0), np.cov(rows.T, bias=True))
    for gone, stay in ((np.array([0, 1]), np.arange(2, 9)), (np.arange(9), np.arange(0))):
        assert held_out(moments, moments, gone, stay) == [0.0] * len(RIDGES)
        coefficients, offsets = predict(reading_of(rows, bias=True), gone, stay, {})
        np.testing.assert_array_equal(coefficients, np.zeros((len(gone), len(stay))))
        np.testing.assert_allclose(offsets, rows.mean(0)[gone], rtol=1e-12)
    model = stack((4, 3))
    sizes = model.structure.counts()
    responses = {name: np.random.default_rng(2).normal(size=(50, units)) for name, units in sizes.items()}
    held = {name: layer.moments for name, layer in model.evidence(responses).layers.items()}
    found = readings(model.structure, model.tensors, held, {})
    ridges = {}
    kept = {"a": [0, 1, 2, 3], "b": [0, 2]}
    folds = COMPENSATIONS["least-squares"](model.structure, kept, found, ridges)
    assert [fold.tensor for fold in folds] == ["b.w_hh", "out.weight"]
    assert set(ridges.values()) == {RIDGE_UNSEEN} == {1e-4}
    second = responses["b"].T @ responses["b"] / 50  # About zero: these weights have no bias.
    among = second[np.ix_([0, 2], [0, 2])]
    wanted = second[1, [0, 2]] @ np.linalg.inv(among + 1e-4 * np.trace(among) / 2 * np.eye(2))
    for fold in folds:
        np.testing.assert_allclose(fold.arrays(1, 2)[0], wanted[None], rtol=1e-9)
        assert not fold.arrays(1, 2)[1].any()
