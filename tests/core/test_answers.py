"""Dense answers that are held, and what is said of a pruned model's, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, log_softmax, rel_entr

from reprune.core.answers.answers import Answers, Fidelity, Meaning, Sample, as_rows
from reprune.core.answers.divergence import Square
from reprune.core.budget.budget import Request, most_within
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


@pytest.mark.parametrize(("rows", "fit", "judged"), [(1, 1, 1), (2, 1, 1), (3, 2, 1), (9, 7, 2), (30, 25, 5)])
def test_a_sixth_of_the_rows_is_judged_by_and_a_single_row_serves_both(rows, fit, judged):
    held = Answers([0], lambda batch: [np.zeros((rows, 2))])
    fitted, judging = (next(held.compared(0, [np.zeros((rows, 2))], part)).rows for part in ("fit", "judged"))
    assert (len(fitted), len(judging)) == (fit, judged)
    assert {*fitted, *judging} == {*range(rows)}


def test_several_outputs_and_batches_count_by_their_rows():
    """Divergences of outputs add up; shares and errors are means over outputs, of those with a largest one."""
    sizes, widths = (6, 14), (2, 1, 3)
    dense, small = ([[RNG.normal(size=(n, w)) + w for w in widths] for n in sizes] for _ in range(2))
    held = Answers([0, 1], dense.__getitem__, "mse")
    for rows in ("fit", "judged", "all"):
        divergence, agreed, errors = 0.0, [], []
        for output in range(3):
            pairs = [[*held.compared(batch, small[batch], rows)][output].rows for batch in range(2)]
            found, wanted = (
                np.concatenate([part[batch][output][pairs[batch]] for batch in range(2)]) for part in (small, dense)
            )
            first = held._of(0)[output].answers
            divergence += ((found - wanted) ** 2).mean() / first.var()
            agreed += [(found.argmax(1) == wanted.argmax(1)).mean()] if widths[output] > 1 else []
            errors.append(np.sqrt(((found - wanted) ** 2).mean() / wanted.var()))
        fidelity = held.fidelity(small.__getitem__, [0, 1], rows)
        expected = (divergence, np.mean(agreed), np.mean(errors))
        np.testing.assert_allclose((fidelity.divergence, fidelity.agreement, fidelity.error), expected, rtol=1e-10)
        np.testing.assert_allclose(held.divergence(small.__getitem__, [0, 1], rows), divergence, rtol=1e-10)


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


def test_errors_keep_their_digits_beside_a_large_mean():
    wanted = 1e3 + 0.1 * RNG.normal(size=(900, 4)).astype(np.float32)
    found = wanted + np.float32(0.05) * RNG.normal(size=wanted.shape).astype(np.float32)
    fidelity = Answers([0], lambda batch: [wanted]).fidelity(lambda batch: [found], [0], "all")
    exact = np.float64(found), np.float64(wanted)
    np.testing.assert_allclose(fidelity.error, np.sqrt(((exact[0] - exact[1]) ** 2).mean() / exact[1].var()), rtol=1e-5)


@pytest.mark.parametrize("dense", [0.0, 0.1])
def test_against_answers_that_are_all_the_same_any_other_is_wrong(dense):
    wanted = np.full((30, 1), dense)
    held = Answers([0], lambda batch: [wanted])
    errors = [held.fidelity(lambda batch, off=off: [wanted + off], [0], "all").error for off in (0.0, 0.01)]
    assert errors == [0, 1]


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
    assert str(Fidelity(0.12345, None, 0.5)) == "relative error 50.0%, divergence 0.123"
    said = "the same largest output in 87.5% of rows, relative error 50.0%, divergence 0.123"
    assert str(Fidelity(0.12345, 0.875, 0.5)) == said


@pytest.mark.parametrize(("numbers", "rows"), [(64, 16), (67, 16), (3, 1)])
def test_of_wide_outputs_some_rows_are_held(monkeypatch, numbers, rows):
    monkeypatch.setattr("reprune.core.answers.answers.NUMBERS", numbers)
    (pair,) = answers().compared(0, [SMALL[0]], "all")
    assert len({*pair.rows}) == rows


def test_classes_that_the_dense_model_rules_out():
    dense = np.concatenate([DENSE[0].reshape(30, 4), np.full((30, 1), -np.inf)], axis=1)
    small = np.concatenate([SMALL[0].reshape(30, 4), np.full((30, 1), -np.inf)], axis=1)
    wide = Answers([0], lambda batch: [dense], "kl").fidelity(lambda batch: [small], [0], "all")
    narrow = Answers([0], lambda batch: [DENSE[0]], "kl").fidelity(lambda batch: [SMALL[0]], [0], "all")
    np.testing.assert_allclose(wide.divergence, narrow.divergence, rtol=1e-9)
    assert wide.agreement == narrow.agreement
    np.testing.assert_allclose(wide.error, narrow.error, rtol=1e-9)


def test_cotangents_are_of_the_mean_over_all_rows_to_fit():
    held = answers(divergence="mse")
    pulled = [next(held.cotangents(batch, [SMALL[batch]], np.random.default_rng(0))) for batch in range(3)]
    for batch, (place, _, projection) in enumerate(pulled):
        fit = held._of(batch)[0].fit
        rows = 3 * len(fit)
        draws = Square(held._of(0)[0].answers.var()).projection(
            SMALL[batch].reshape(-1, 4)[fit], None, np.random.default_rng(0)
        )
        expected = np.zeros((30, 4))
        expected[fit] = draws / np.sqrt(rows)
        assert place == 0
        np.testing.assert_allclose(projection, expected.reshape(6, 5, 4), rtol=1e-12)
    step, total = 1e-6, 0.0
    for batch, (_, gradient, _) in enumerate(pulled):
        total += float((gradient * (SMALL[batch] - DENSE[batch])).sum())
        assert gradient.shape == SMALL[batch].shape
    moved = [small + step * (small - dense) for small, dense in zip(SMALL, DENSE, strict=True)]
    values = [held.divergence(lambda batch, at=at: [at[batch]], range(3), "fit") for at in (moved, SMALL)]
    np.testing.assert_allclose(total, (values[0] - values[1]) / step, rtol=1e-4)


def test_batches_are_taken_to_be_as_large_as_the_first():
    """An output that is not among the first batch's counts by its own rows."""
    dense, small = ([RNG.normal(size=(n, 2)) for n in (12, 6, 9)] for _ in range(2))
    held = Answers([0, 1], lambda batch: [dense[1:], dense[:1]][1 - batch], "mse")
    assert [len(output.fit) for output in (*held._of(0), *held._of(1))] == [10, 5, 7]
    pulled = list(held.cotangents(1, small[1:], np.random.default_rng(0)))
    assert [place for place, _, _ in pulled] == [0, 1]
    for (place, gradient, _), rows in zip(pulled, (2 * 10, 2 * 7), strict=True):
        (output,), first = ([part for part in held._of(n) if part.place == place] for n in (1, 0))
        variance = (first or [output])[0].answers.var()
        expected = np.zeros_like(gradient)
        expected[output.fit] = (small[1 + place] - dense[1 + place])[output.fit] / variance / rows
        np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_a_sample_is_spread_evenly_and_bounded():
    sample = Sample(most=4, size=0)  # Of numbers no size is known.
    assert list(sample.watch(range(11))) == list(range(11))
    assert sample.batches == [0, 4, 8]
    for shape in (lambda row: {"x": [row], "n": 7}, lambda row: (row[:4], row[4:]), lambda row: row):
        heavy = Sample(size=3 * 80)
        held = []
        for _ in range(9):
            heavy.add(shape(np.zeros(10)))
            held.append(len(heavy.batches))
        # The fourth is one too many, and from then on only every second one is taken, then every fourth.
        assert held == [1, 2, 3, 2, 3, 3, 2, 2, 3]
    growing = Sample(size=100)
    for size in (10, 20, 30, 50, 1, 1, 55):  # Without every second one, the last one fits: 10 + 30 + 1 + 55.
        growing.add(np.zeros(size, np.int8))
    assert [batch.size for batch in growing.batches] == [10, 30, 1, 55]
    single = Sample(most=1, size=8)
    for batch in range(3):
        single.add(np.full(10, batch))  # One is held, be it too large.
        assert [int(held[0]) for held in single.batches] == [0]


def test_answers_that_were_seen_are_not_asked_for_again():
    sample = Sample(most=2)
    for batch in sample.watch(range(4)):
        reused = [DENSE[min(batch, 2)].copy()]
        sample.answered(reused)
        reused[0][:] = np.nan  # As a model does that writes into one buffer.
    assert sample.batches == [0, 2]
    assert len(sample.answers) == 2
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
    wide = Sample()
    for batch in wide.watch(range(2)):
        wide.answered([DENSE[batch], DENSE[batch]])
    assert [known is not None for known in wide.answers] == [True, False]


def test_consumers_are_fitted_on_as_many_batches_as_it_takes(monkeypatch):
    many = Answers(list(range(20)), lambda batch: [DENSE[batch % 3]])
    assert many.places == list(range(20))
    assert many.some == [0, 5, 10, 15]
    monkeypatch.setattr("reprune.core.answers.answers.HELD", 4 * DENSE[0].size)
    monkeypatch.setattr("reprune.core.answers.answers.ROWS", 60)
    assert many.places == [0, 5, 10, 15]
    assert many.some == [0, 10]
    monkeypatch.setattr("reprune.core.answers.answers.HELD", 3 * DENSE[0].size + 1)
    monkeypatch.setattr("reprune.core.answers.answers.ROWS", 61)
    assert many.places == [0, 5, 10, 15]
    assert many.some == [0, 6, 13]
    monkeypatch.setattr("reprune.core.answers.answers.ROWS", 1)
    assert many.some == [0, 10]  # Two at least, as long as there are two.
    assert Answers([0], lambda batch: [DENSE[0]]).some == [0]


def test_as_rows():
    assert as_rows(np.zeros((2, 3, 4))).shape == (6, 4)
    assert as_rows(np.zeros(5)).shape == (5, 1)
    assert as_rows(np.zeros(())) is None
    assert as_rows(np.zeros((0, 3))) is as_rows(np.zeros((3, 0))) is None
    assert as_rows(np.zeros((1, 3))).shape == (1, 3)
    assert as_rows(np.zeros(5, dtype=np.int64)) is None


class TestTolerance:
    """The largest ratio that stays within a tolerance."""

    def test_it_is_found(self):
        asked = []
        found = most_within(lambda ratio: asked.append(ratio) or ratio, lambda ratio: ratio**2 <= 0.25)
        assert 0.49 <= found <= 0.5
        assert all(0 <= ratio < 1 for ratio in asked)

    def test_nothing_goes_if_nothing_may(self):
        assert most_within(lambda ratio: ratio, lambda ratio: ratio == 0) == 0.0

    def test_bounds_are_kept(self):
        def plan(ratio):
            if ratio > 0.3:
                raise BudgetError("too far")
            return ratio

        assert 0.29 <= most_within(plan, lambda ratio: True) <= 0.3

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
    ("agreement", "error", "poor"),
    [(None, 0.6, True), (0.7, 0.6, True), (0.9, 0.6, False), (0.8, 0.6, False), (0.7, 0.5, False), (0.7, 0.4, False)],
)
def test_poor_is_far_off_and_of_another_opinion(agreement, error, poor):
    assert Fidelity(0.1, agreement, error).poor is poor
