"""What consumers read, beside sums over the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest

from reprune.core.errors import CalibrationWarning
from reprune.core.evidence.moments import Moments
from reprune.core.evidence.readings import MANY, FeedBack, Importance, Reading, SplitMoments, readings
from reprune.core.layers import Consumer, Slot, Span
from tests.helpers.builders import stack

RNG = np.random.default_rng(0)
SLOT = Slot("out", 1, 4, "reads", (Span(0, "a", 0, 4),))


def split(rows: np.ndarray) -> SplitMoments:
    found = SplitMoments("out", rows.shape[1])
    found.update(rows)
    return found


def moments(rows: np.ndarray) -> Moments:
    found = Moments("out", rows.shape[1])
    found.update(rows)
    return found


@pytest.mark.parametrize("bias", ["bias", None])
def test_moments_are_about_the_mean_where_a_bias_takes_it_up(bias: str | None) -> None:
    rows = RNG.normal(size=(31, 4)) + np.arange(1, 5)
    reading = Reading(Consumer("out", 1, bias), SLOT, split(rows).halves, RNG.normal(size=(3, 4)))
    assert reading.halves is not None
    assert reading.rows == 31
    for found, seen in zip((reading.moments, *reading.halves), (rows, rows[:16], rows[16:]), strict=True):
        mean = seen.mean(0) if bias else np.zeros(4)
        np.testing.assert_allclose(found.mean, mean, atol=1e-14)
        np.testing.assert_allclose(found.matrix, (seen - mean).T @ (seen - mean) / len(seen), rtol=1e-12)


def test_one_row_has_no_halves() -> None:
    reading = Reading(Consumer("out", 1), SLOT, split(RNG.normal(size=(1, 4))).halves, RNG.normal(size=(3, 4)))
    assert reading.halves is None


def test_a_recurrent_weight_reads_the_states_before_the_steps() -> None:
    states = RNG.normal(size=(5, 9, 4))  # Five sequences: the state before the first step, and after each of eight.
    fed = FeedBack("out", 4)
    fed.update(states[:, 0], states[:, -1])
    read, weight = states[:, 1:].reshape(-1, 4), RNG.normal(size=(3, 4))
    reading = Reading(Consumer("out", 1, "bias"), SLOT, split(read).halves, weight, fed=fed)
    np.testing.assert_allclose(reading.exact.matrix, np.cov(states[:, :-1].reshape(-1, 4).T, bias=True), rtol=1e-12)
    np.testing.assert_allclose(reading.moments.matrix, np.cov(read.T, bias=True), rtol=1e-12)


def test_outputs_count_as_the_answer_depends_on_them() -> None:
    rows, weight = RNG.normal(size=(40, 4)) + 1, RNG.normal(size=(3, 4))
    # The squared gradient of a linear map's weight is that of its output times what it reads, squared.
    importance = np.array([1.0, 4.0, 0.25])
    gradient = importance * (rows**2).sum(1).mean()
    reading = Reading(Consumer("out", 1, "bias"), SLOT, split(rows).halves, weight, gradient)
    np.testing.assert_allclose(reading.gram, weight.T @ np.diag(importance) @ weight, rtol=1e-12)
    plain = Reading(Consumer("out", 1, "bias"), SLOT, split(rows).halves, weight)
    np.testing.assert_allclose(plain.gram, weight.T @ weight, rtol=1e-12)


def test_what_was_not_observed_is_taken_from_the_responses() -> None:
    model = stack((4, 3))
    rows = {"a": RNG.normal(size=(50, 4)), "b": RNG.normal(size=(50, 3))}
    found = readings(model.structure, model.tensors, {name: moments(part) for name, part in rows.items()}, {})
    for reading in found:
        expected = rows[reading.slot.spans[0].layer]
        np.testing.assert_allclose(reading.moments.matrix, expected.T @ expected / 50, rtol=1e-12)


def test_fewer_rows_than_features_are_told() -> None:
    model = stack((4, 3))
    responses = {"a": moments(RNG.normal(size=(4, 4))), "b": moments(RNG.normal(size=(2, 3)))}
    with pytest.warns(CalibrationWarning, match="2 of 4 consumers .* b.w_hh read 2 rows of 3 features"):
        readings(model.structure, model.tensors, responses, {})


def test_the_first_batch_is_looked_at_most() -> None:
    importance = Importance(MANY - 1)
    assert (importance.sure, importance.draws) == (False, 4)
    importance.add({("out", 1): np.array([2.0])}, 1)
    assert importance.draws == 1
    importance.add({("out", 1): np.array([6.0])}, 3)  # Stands for three batches.
    assert importance.mean()["out", 1].tolist() == [5.0]
    assert (Importance(MANY).sure, Importance(MANY).draws) == (True, 1)
