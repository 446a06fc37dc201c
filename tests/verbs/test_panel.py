"""Rounds in which gates are refitted and consumers after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest.mock import Mock

import pytest

from reprune.verbs import panel
from reprune.verbs.panel import Panel


@dataclass(frozen=True)
class Plan:
    """What a panel asks of a plan."""

    refits: tuple[str, ...] = ("consumers alone",)
    folds: bool = True


@pytest.mark.parametrize(
    ("gates", "values", "kept"),
    [
        ([{"a": 1}, {"b": 2}], [0.5, 0.4], "a1 b2"),
        ([{"a": 1}, {"a": 2, "b": 2}], [0.5, 0.4], "a2 b2"),
        ([{"a": 1}, {"b": 2}], [0.5, 0.9], "a1"),
        ([{"a": 1}, {"b": 2}], [0.9, 0.8], "consumers alone"),
        ([{"a": 1}, {}], [0.5], "a1"),
        ([{}], [], "consumers alone"),
    ],
)
def test_the_best_round_is_kept_with_what_those_before_it_changed(
    gates: list[Any], values: list[float], kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = object.__new__(Panel)
    judge._adapter = judge._model = judge._answers = judge._forward = Mock()
    left = iter(values)

    def refitted(plan: Plan, small: Any, changed: Any) -> tuple[float, Plan]:
        return next(left), Plan((" ".join(f"{name}{value}" for name, value in changed.items()),))

    monkeypatch.setattr(panel, "refit_gates", Mock(side_effect=gates))
    monkeypatch.setattr(judge, "_refitted", refitted)
    monkeypatch.setattr(judge, "_narrowed", Mock())
    plan: Any = Plan()
    assert judge.regated(0.6, plan).refits == (kept,)
    assert next(left, None) is None
