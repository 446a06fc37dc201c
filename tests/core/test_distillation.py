"""Step sizes of distillation, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from reprune.core.answers.distillation import check_steps, diverged, nothing_may_change, nothing_to_compare, step_size
from reprune.core.errors import StatisticsError


def test_step_sizes_rise_and_fall_along_lines() -> None:
    """Over a twentieth of the steps they rise; the last one is as far from zero as steps are from each other."""
    line = np.linspace(1, 0, 100, endpoint=False)
    rise = np.array([0.2, 0.4, 0.6, 0.8])
    found = [step_size(step, 100, 3.0) for step in range(1, 101)]
    np.testing.assert_allclose(found, 3 * np.concatenate([rise, line[4:]]))
    assert [step_size(step, 2, 1.0) for step in (1, 2)] == [1.0, 0.5]


def test_steps_are_one_at_least() -> None:
    check_steps(1)
    with pytest.raises(StatisticsError, match="steps=0 must be"):
        check_steps(0)


def test_errors_say_what_to_do() -> None:
    assert "became inf at step 7: give a smaller learning_rate than 0.1" in str(diverged(np.inf, 7, 0.1))
    assert "No weight of dict may change: unfreeze" in str(nothing_may_change({}))
    assert "give divergence=" in str(nothing_to_compare())
