"""Dense answers that are held, and what is said of a pruned model's, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, log_softmax, rel_entr

from reprune.core.answers.answers import NUMBERS, Answers, Fidelity, Meaning, Sample, as_rows
from reprune.core.budget.budget import PRECISION, Request, most_within
from reprune.core.errors import BudgetError

RNG = np.random.default_rng(0)
DENSE = [RNG.normal(size=(6, 5, 4)) for _ in range(3)]
SMALL = [rows + 0.5 * RNG.normal(size=rows.shape) for rows in DENSE]


def answers(**options):
    return Answers([0, 1, 2], lambda batch: [DENSE[batch]], **options)


def test_every_row_is_fitted_or_judged():
    held = answers()
    for batch in range(3):
        rows = {part: next(held.compared(batch, [SMALL[batch]], part)) for part in ("fit", "judged", "all")}
        assert sorted([*rows["fit"].rows, *rows["judged"].rows]) == list(range(30))
        assert len(rows["judged"].rows) == 5
        for part in rows.values():
            np.testing.assert_array_equal(part.found, SMALL[batch].reshape(-1, 4)[part.rows])
            np.testing.assert_array_equal(part.wanted, DENSE[batch].reshape(-1, 4)[part.rows])


def test_fidelity_is_what_numpy_says():
    found, wanted = np.concatenate(SMALL).reshape(-1, 4), np.concatenate(DENSE).reshape(-1, 4)
    fidelity = answers(divergence="kl").fidelity(lambda batch: [SMALL[batch]], range(3), "all")
    own, dense = log_softmax(found, axis=1), log_softmax(wanted, axis=1)
    np.testing.assert_allclose(fidelity.divergence, (np.exp(dense) * (dense - own)).sum(1).mean())
    np.testing.assert_allclose(fidelity.agreement, (found.argmax(1) == wanted.argmax(1)).mean())
    np.testing.assert_allclose(fidelity.error, np.sqrt(((found - wanted) ** 2).mean() / wanted.var()))


def test_equal_answers():
    fidelity = answers().fidelity(lambda batch: [DENSE[batch]], range(3), "judged")
    assert fidelity == Fidelity(pytest.approx(0, abs=1e-12), 1.0, 0.0)
    assert not fidelity.poor


def test_outputs_are_told_apart_by_their_width():
    """A carried state of fewer units, indices and strings of a decoder are nothing to compare."""
    dense = [DENSE[0], RNG.normal(size=(6, 8)), np.arange(6)]
    held = Answers([0], lambda batch: dense)
    pairs = list(held.compared(0, [SMALL[0], RNG.normal(size=(6, 3)), np.arange(6)], "all"))
    assert [pair.place for pair in pairs] == [0]
    others = [np.zeros((6, 2)), np.zeros((6, 3)), np.arange(6)]
    assert held.fidelity(lambda batch: others, [0], "all") is None
    assert held.divergence(lambda batch: others, [0], "all") == np.inf
    assert held.divergence(lambda batch: [SMALL[0] * np.nan, *others[1:]], [0], "all") == np.inf


def test_one_number_per_row_has_no_largest():
    held = Answers([0], lambda batch: [DENSE[0][:, 0, 0]])
    fidelity = held.fidelity(lambda batch: [SMALL[0][:, 0, 0]], [0], "all")
    assert fidelity.agreement is None
    assert "largest" not in str(fidelity)


def test_of_wide_outputs_some_rows_are_held():
    wide = np.zeros((40, NUMBERS // 16))
    (pair,) = Answers([0], lambda batch: [wide]).compared(0, [wide], "all")
    assert len(pair.rows) == 16


def test_classes_that_the_dense_model_rules_out():
    dense = np.concatenate([DENSE[0].reshape(30, 4), np.full((30, 1), -np.inf)], axis=1)
    small = np.concatenate([SMALL[0].reshape(30, 4), np.full((30, 1), -np.inf)], axis=1)
    wide = Answers([0], lambda batch: [dense], "kl").fidelity(lambda batch: [small], [0], "all")
    narrow = Answers([0], lambda batch: [DENSE[0]], "kl").fidelity(lambda batch: [SMALL[0]], [0], "all")
    np.testing.assert_allclose(wide.divergence, narrow.divergence, rtol=1e-9)
    assert wide.agreement == narrow.agreement


def test_cotangents_are_of_the_mean_over_all_rows_to_fit():
    held = answers(divergence="mse")
    pulled = [next(held.cotangents(batch, [SMALL[batch]], np.random.default_rng(0))) for batch in range(3)]
    step, total = 1e-6, 0.0
    for batch, (_, gradient, _) in enumerate(pulled):
        total += float((gradient * (SMALL[batch] - DENSE[batch])).sum())
        assert gradient.shape == SMALL[batch].shape
    moved = [small + step * (small - dense) for small, dense in zip(SMALL, DENSE, strict=True)]
    values = [held.divergence(lambda batch, at=at: [at[batch]], range(3), "fit") for at in (moved, SMALL)]
    np.testing.assert_allclose(total, (values[0] - values[1]) / step, rtol=1e-4)


def test_a_sample_is_spread_evenly_and_bounded():
    sample = Sample(most=4, size=0)  # Of numbers no size is known.
    assert list(sample.watch(range(11))) == list(range(11))
    assert sample.batches == [0, 4, 8]
    heavy = Sample(size=3 * 80)
    for _ in range(9):
        heavy.add({"x": [np.zeros(10)]})
    assert len(heavy.batches) <= 3


def test_answers_that_were_seen_are_not_asked_for_again():
    sample = Sample(most=2)
    for batch in sample.watch(range(3)):
        sample.answered([DENSE[batch]])
    assert sample.batches == [0, 2]
    asked = []
    held = Answers(sample.batches, lambda batch: asked.append(batch) or [DENSE[batch]], known=sample.answers)
    assert [next(held.compared(place, [DENSE[2 * place]], "all")).rows.size for place in range(2)] == [30, 30]
    assert held.divergence(lambda place: [DENSE[2 * place]], [0, 1], "all") == pytest.approx(0, abs=1e-12)
    assert asked == []


def test_too_many_answers_are_not_kept(monkeypatch):
    monkeypatch.setattr("reprune.core.answers.answers.HELD", 2 * DENSE[0].size)
    sample = Sample()
    for batch in sample.watch(range(3)):
        sample.answered([DENSE[batch]])
    assert [known is not None for known in sample.answers] == [True, True, False]


def test_consumers_are_fitted_on_as_many_batches_as_it_takes(monkeypatch):
    many = Answers(list(range(20)), lambda batch: [DENSE[batch % 3]])
    assert many.places == list(range(20))
    assert many.some == [0, 5, 10, 15]
    monkeypatch.setattr("reprune.core.answers.answers.HELD", 4 * DENSE[0].size)
    monkeypatch.setattr("reprune.core.answers.answers.ROWS", 60)
    assert many.places == [0, 5, 10, 15]
    assert many.some == [0, 10]


def test_as_rows():
    assert as_rows(np.zeros((2, 3, 4))).shape == (6, 4)
    assert as_rows(np.zeros(5)).shape == (5, 1)
    assert as_rows(np.zeros(())) is None
    assert as_rows(np.zeros(5, dtype=np.int64)) is None


class TestTolerance:
    """The largest ratio that stays within a tolerance."""

    def test_it_is_found(self):
        asked = []
        found = most_within(lambda ratio: asked.append(ratio) or ratio, lambda ratio: ratio**2 <= 0.25)
        assert 0.5 - PRECISION <= found <= 0.5
        assert all(0 <= ratio < 1 for ratio in asked)

    def test_nothing_goes_if_nothing_may(self):
        assert most_within(lambda ratio: ratio, lambda ratio: ratio == 0) == 0.0

    def test_bounds_are_kept(self):
        def plan(ratio):
            if ratio > 0.3:
                raise BudgetError("too far")
            return ratio

        assert 0.3 - PRECISION <= most_within(plan, lambda ratio: True) <= 0.3

    @pytest.mark.parametrize("options", [{"ratio": 0.3}, {"target_ms": 3.0, "of": "latency"}, {"tolerance": -1}])
    def test_contradictions_are_refused(self, options):
        assert Request(tolerance=0.0).tolerance == 0.0
        with pytest.raises(BudgetError, match="tolerance"):
            Request(**{"tolerance": 0.02, **options})


def test_states_that_the_caller_carries_are_no_answers():
    held = Answers([0], lambda batch: [DENSE[0], DENSE[1]], meaning=Meaning(states=[1]))
    assert [pair.place for pair in held.compared(0, [SMALL[0], SMALL[1]], "all")] == [0]


def test_what_a_sigmoid_made_are_chances():
    dense, small = expit(DENSE[0]), expit(SMALL[0])
    held = Answers([0], lambda batch: [dense], meaning=Meaning(chances=[0]))
    expected = (rel_entr(dense, small) + rel_entr(1 - dense, 1 - small)).sum(-1).mean()
    assert held.divergence(lambda batch: [small], [0], "all") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("agreement", "error", "poor"), [(None, 0.6, True), (0.7, 0.6, True), (0.9, 0.6, False), (0.7, 0.4, False)]
)
def test_poor_is_far_off_and_of_another_opinion(agreement, error, poor):
    assert Fidelity(0.1, agreement, error).poor is poor
