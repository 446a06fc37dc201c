"""Schedules as text, and the curves they follow."""

from __future__ import annotations

import itertools

import pytest

from reprune.core.errors import RecipeError
from reprune.core.schedule import SCHEDULES, After, Fractional, Gradual, Soft, parse_schedule


@pytest.mark.parametrize("text", ["", "soft", "soft:", "soft:x", "soft:0", "after:3", "soft:-1", "soft:3:4", "hard:5"])
def test_not_a_schedule(text: str) -> None:
    with pytest.raises(RecipeError, match=r"is not a schedule: give one of after, soft:S, fractional:S, gradual:S"):
        parse_schedule(text)


def test_as_text() -> None:
    for form, kind in SCHEDULES.items():
        for steps in ("1", "200"):
            text = form.replace("S", steps)
            schedule = parse_schedule(text)
            assert isinstance(schedule, kind)
            assert str(schedule) == text
            assert parse_schedule(schedule) is schedule


def test_which_ones_shrink_the_model_and_which_follow_the_course_of_the_training() -> None:
    assert [form for form, kind in SCHEDULES.items() if kind.shrinks] == ["gradual:S"]
    assert [form for form, kind in SCHEDULES.items() if kind.needs_total] == ["fractional:S", "gradual:S"]


def test_when_it_is_due() -> None:
    assert [Soft(3).due(step) for step in range(1, 7)] == [False, False, True, False, False, True]
    assert Soft(1).due(1)
    assert not After().due(1)


def test_soft_selects_all_at_once() -> None:
    assert Soft(3).share(0.0) == 1.0
    assert Soft(3).factor(0.0) == 0.0


def test_fractional_goes_through_the_three_points_of_its_source() -> None:
    """0 at the start, 3/4 of the way after an eighth of the training, all at the end."""
    curve = Fractional(5)
    assert curve.share(0.0) == 0.0
    assert curve.share(1 / 8) == pytest.approx(0.75, abs=1e-4)
    assert curve.share(1.0) == 1.0
    assert curve.factor(0.0) == 1.0
    assert curve.factor(1.0) == 0.0
    assert [curve.factor(p) for p in (0.05, 0.3)] == pytest.approx([1 - curve.share(0.05), 1 - curve.share(0.3)])
    left = [1 - curve.share(k / 100) + 1 / (4**8 - 1) for k in range(101)]
    ratios = [b / a for a, b in itertools.pairwise(left)]
    assert ratios == pytest.approx([4**-0.08] * 100)


def test_gradual_is_a_cubic_until_half_time() -> None:
    """Zhu and Gupta, eq. 1 with s_i = 0: s_f + (s_i − s_f) (1 − t / T)³."""
    curve = Gradual(5)
    final, steps = 0.8, 50
    for step in (0, 7, 25, 50):
        expected = final + (0.0 - final) * (1 - step / steps) ** 3
        assert final * curve.share(step / 100) == pytest.approx(expected)
    assert curve.share(0.7) == 1.0
