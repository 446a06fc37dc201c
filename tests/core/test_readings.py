"""What consumers read, beside sums over the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest

from reprune.core.errors import CalibrationWarning
from reprune.core.evidence.moments import Moments
from reprune.core.evidence.readings import (
    MANY,
    FeedBack,
    Importance,
    Reading,
    SplitMoments,
    Statistics,
    random_signs,
    readings,
)
from reprune.core.layers import Consumer, Layer, Slot, Span, Structure
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
    rows, weight = RNG.normal(size=(5, 4)), RNG.normal(size=(3, 4))
    assert Reading(Consumer("out", 1), SLOT, split(rows[:1]).halves, weight).halves is None
    assert Reading(Consumer("out", 1), SLOT, [moments(rows)], weight).halves is None
    assert Reading(Consumer("out", 1), SLOT, split(rows[:2]).halves, weight).halves is not None


def test_halves_add_up_and_are_taken_away() -> None:
    rows = RNG.normal(size=(11, 4))
    whole, part = split(rows[:7]), split(rows[7:])
    whole.update(rows[7:])
    assert (whole.count, [half.count for half in whole.halves]) == (11, [6, 5])
    np.testing.assert_allclose(whole.halves[1].mean, rows[[4, 5, 6, 9, 10]].mean(0))
    np.testing.assert_allclose(whole.merged().covariance, np.cov(rows.T, bias=True))
    rest = whole.without(part)
    assert (rest.count, rest.size) == (7, 4)
    for half, seen in zip(rest.halves, (rows[:4], rows[4:7]), strict=True):
        np.testing.assert_allclose(half.covariance, np.cov(seen.T, bias=True))


def test_who_shares_moments() -> None:
    """Those of the very same rows, about the same centre; and, where recurrent weights read them, before the steps."""
    one, other = split(RNG.normal(size=(8, 4))).halves, split(RNG.normal(size=(8, 4))).halves
    fed = [FeedBack("out", 4), FeedBack("out", 4)]

    def made(halves=one, bias="bias", feed=None):
        return Reading(Consumer("out", 1, bias), SLOT, halves, np.zeros((3, 4)), fed=feed)

    assert made().source == made(feed=fed[0]).source
    assert made().exact_source == made().exact_source
    assert made(feed=fed[0]).exact_source == made(feed=fed[0]).exact_source
    for another in (made(other), made(bias=None)):
        assert another.source != made().source
        assert another.exact_source != made().exact_source
    assert made([moments(RNG.normal(size=(8, 4)))]).source != made().source
    assert len({made(feed=feed).exact_source for feed in (None, *fed)}) == 3
    reading = made()
    assert reading.exact is reading.moments


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


def test_positions_of_a_unit_hold_its_responses() -> None:
    """A consumer that reads two of the units of `a` at two positions each, beside all of `b` and one other feature."""
    rows = {"a": RNG.normal(size=(50, 4)) + 1, "b": RNG.normal(size=(60, 3))}
    slot = Slot("w", 0, 8, "reads", (Span(0, "a", 2, 2, 2), Span(5, "b", 0, 3)))
    layers = {name: Layer(name, "lstm", part.shape[1]) for name, part in rows.items()}
    structure = Structure(layers, (slot,), {"w": (8, 2)}, (("a",), ("b",)), consumers=(Consumer("w", 0, "bias"),))
    responses = {name: moments(part) for name, part in rows.items()}
    weight = RNG.normal(size=(8, 2))
    (found,) = readings(structure, {"w": weight}, responses, {})
    np.testing.assert_allclose(found.moments.mean, [*np.repeat(rows["a"].mean(0)[2:], 2), 0, *rows["b"].mean(0)])
    # Nothing is known of what they have in common, nor of two positions of a unit.
    expected = np.zeros((8, 8))
    expected[:4:2, :4:2] = expected[1:4:2, 1:4:2] = np.cov(rows["a"].T, bias=True)[2:, 2:]
    expected[5:, 5:] = np.cov(rows["b"].T, bias=True)
    np.testing.assert_allclose(found.moments.matrix, expected, atol=1e-15)
    assert (found.rows, found.halves) == (60, None)
    read = RNG.normal(size=(30, 8))
    seen = {("w", 0): split(read)}
    (found,) = readings(structure, {"w": weight}, responses, seen, {("w", 0): np.array([1.0, 4.0])})
    np.testing.assert_allclose(found.moments.matrix, np.cov(read.T, bias=True))
    counts = np.array([1.0, 4.0]) / (read**2).sum(1).mean()
    np.testing.assert_allclose(found.gram, weight * counts @ weight.T)
    (found,) = readings(structure, {"w": weight}, responses, {("w", 0): SplitMoments("w", 8)})
    np.testing.assert_allclose(found.moments.matrix, expected, atol=1e-15)


def test_fewer_rows_than_features_are_told() -> None:
    model = stack((4, 3))
    responses = {"a": moments(RNG.normal(size=(4, 4))), "b": moments(RNG.normal(size=(3, 3)))}
    readings(model.structure, model.tensors, responses, {})  # As many are enough: a warning would be an error here.
    responses = {"a": moments(RNG.normal(size=(3, 4))), "b": moments(RNG.normal(size=(2, 3)))}
    with pytest.warns(CalibrationWarning, match="4 of 4 consumers .* b.w_hh read 2 rows of 3 features"):
        readings(model.structure, model.tensors, responses, {})
    responses["a"] = moments(RNG.normal(size=(2, 4)))
    with pytest.warns(CalibrationWarning, match="4 of 4 consumers .* a.w_hh read 2 rows of 4 features"):
        readings(model.structure, model.tensors, responses, {})


def test_statistics_hold_moments_of_every_layer() -> None:
    found = Statistics(stack((4, 3)).structure)
    assert {name: (part.name, part.size, part.count) for name, part in found.items()} == {
        "a": ("a", 4, 0),
        "b": ("b", 3, 0),
    }
    assert (found.readings, found.fed, found.answers) == ({}, {}, {})


def test_random_signs_are_one_or_minus_one() -> None:
    signs = random_signs(np.random.default_rng(0), (50, 40))
    assert set(signs.ravel()) == {-1, 1}
    assert abs(signs.mean()) < 4 / 2000**0.5


def test_the_first_batch_is_looked_at_most() -> None:
    importance = Importance(MANY - 1)
    assert (importance.sure, importance.draws) == (False, 4)
    importance.add({("out", 1): np.array([2.0])}, 1)
    assert importance.draws == 1
    importance.add({("out", 1): np.array([6.0])}, 3)  # Stands for three batches.
    assert importance.batches == 4
    assert importance.mean()["out", 1].tolist() == [5.0]
    assert (Importance(MANY).sure, Importance(MANY).draws) == (True, 1)
