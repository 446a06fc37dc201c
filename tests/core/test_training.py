"""What training methods count, in closed form: courses, penalties, the units that are gone."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import numpy as np
import pytest

from reprune.core.budget.budget import Budget
from reprune.core.plan import Plan
from reprune.core.schedule import After, Fractional, Gradual
from reprune.core.training import group_lasso, hard_concrete
from reprune.core.training.course import Course, share_and_factor, whole
from reprune.core.training.given_scores import decide_by
from reprune.core.training.group_lasso import Pull, share_gone
from reprune.core.training.shrink import shrunk
from reprune.core.units import UnitIndex
from tests.helpers.builders import stack

MODEL = stack((4, 3))


def test_a_course_removes_of_what_is_left_what_its_share_leaves_of_the_whole() -> None:
    budget = Budget(0.5, "parameters", min_units=2)
    course = Course(MODEL.structure, budget)
    assert course.units == course.before == {"a": [0, 1, 2, 3], "b": [0, 1, 2]}
    total = MODEL.parameters({"a": 4, "b": 3})
    asked = course.budget(0.6, MODEL.structure)
    assert replace(asked, ratio=0.5) == budget
    assert asked.ratio == pytest.approx(0.3, rel=1e-12)

    kept = {"a": [0, 2, 3], "b": [0, 1, 2]}
    now, left = shrunk(MODEL.structure, kept), MODEL.parameters({"a": 3, "b": 3})
    assert course.budget(0.9, now).ratio == pytest.approx(1 - (1 - 0.45) * total / left, rel=1e-12)
    assert course.budget(0.1, now).ratio == 0.0  # More than that is gone already.
    open_end = Course(MODEL.structure, Budget(None))
    assert open_end.budget(0.5, MODEL.structure).ratio == 0.0

    course.shrink(kept)
    course.shrink({"a": [1, 2], "b": [0, 2]})
    assert (course.before, course.units) == (kept, {"a": [2, 3], "b": [0, 2]})
    # A decision about the smaller model, in numbers of the one that came in.
    smaller = Plan(shrunk(MODEL.structure, course.units), {"a": [1], "b": [0, 1]}, "m", 0.25, "macs")
    assert course.original(smaller) == Plan(MODEL.structure, {"a": [3], "b": [0, 2]}, "m", 0.5, "macs")
    open_end.shrink(course.units)
    assert open_end.original(smaller).ratio == 0.0
    own = Plan(MODEL.structure, whole(MODEL.structure), "m", 0.25)
    assert course.original(own) is own


def test_a_schedule_runs_to_the_end_of_the_training_and_no_further() -> None:
    curve = Fractional(5)
    assert share_and_factor(curve, 3, 8) == (curve.share(3 / 8), curve.factor(3 / 8))
    assert share_and_factor(curve, 9, 8) == (1.0, 0.0)
    assert share_and_factor(Gradual(5), 3, None) == (0.0, 0.0)
    assert share_and_factor(After(), 3, 0) == (1.0, 0.0)


def test_the_pull_grows_until_the_target_is_near() -> None:
    fade, pull = group_lasso.FADE, Pull()
    assert (pull.missing, pull.on_units) == (1.0, (group_lasso.START, group_lasso.START))
    strength = group_lasso.START
    # Far off; within the distance over which it fades; past the target; far past.
    for missing, grows, left, gone in [
        (0.5, 1.0, 1.0, 1.0),
        (fade / 4, 0.25, 0.25, 1.0),
        (-fade / 4, 0.0, 0.0, 0.75),
        (-2 * fade, 0.0, 0.0, 0.0),
    ]:
        pull.step(missing)
        strength *= exp(group_lasso.GROWTH * grows)
        assert pull.strength == pytest.approx(strength, rel=1e-12)
        assert pull.on_units == pytest.approx((left * strength, gone * strength), rel=1e-12)


def test_units_that_are_as_good_as_zero_count_as_gone() -> None:
    index = UnitIndex(MODEL.structure)
    alive = np.array([True, False, True, False, False, False, False])
    total = MODEL.parameters({"a": 8, "b": 8})  # The model has lost some before.
    # A layer keeps one unit at least.
    expected = 1 - MODEL.parameters({"a": 2, "b": 1}) / total
    assert share_gone(MODEL.structure, index, alive, "parameters", total) == pytest.approx(expected, rel=1e-12)
    pinned = stack((4, 3), pinned=["a"])
    expected = 1 - MODEL.parameters({"a": 4, "b": 2}) / total
    alive = np.array([True, False, True])
    found = share_gone(pinned.structure, UnitIndex(pinned.structure), alive, "parameters", total)
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_penalty_on_gates_grows_while_the_target_is_missed() -> None:
    slack, growth = hard_concrete.SLACK, hard_concrete.GROWTH
    # Met, or overshot: as it was. Missed by half of the slack more, or by far.
    for missing, grows in [(-1.0, 0.0), (0.5 * slack, 0.0), (1.5 * slack, 0.5), (2 * slack, 1.0), (1.0, 1.0)]:
        assert hard_concrete.grown(3.0, missing) == pytest.approx(3 * exp(growth * grows), rel=1e-12)
        # The slope is that of |d|, rounded off.
        assert hard_concrete.penalty_slope(missing, 3.0) == 3 * np.clip(missing / slack, -1, 1)


def test_learned_scores_decide_over_all_layers_under_their_method_s_name() -> None:
    scores = {"a": np.array([5.0, 1, 6, 2]), "b": np.array([3.0, 9, 0.5])}
    plan = decide_by(scores, MODEL.structure, MODEL.tensors, Budget(3 / 7), "learned", 0)
    assert plan.kept == {"a": [0, 2], "b": [0, 1]}
    assert plan.method == "learned"
