"""Schedules: when pruning happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reprune.core.errors import RecipeError


@dataclass(frozen=True)
class Schedule:
    """When pruning happens.

    Attributes:
        kind: `after`: once, when training is over. `soft`: every `every` steps of training units are selected and
            silenced, then go on learning; the selection becomes final at the end.
        every: Optimiser steps from one selection to the next; 0 for `after`.

    Example:
        >>> parse_schedule("soft:200")
        Schedule(kind='soft', every=200)
    """

    kind: Literal["after", "soft"]
    every: int = 0

    def due(self, step: int) -> bool:
        """Whether units are selected right after optimiser step `step` (counted from 1)."""
        return self.every > 0 and step % self.every == 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.every}" if self.every else self.kind


def parse_schedule(text: str | Schedule) -> Schedule:
    """Read a schedule as it is written on a command line: `after` or `soft:S`.

    Raises:
        RecipeError: When the text is neither.
    """
    if isinstance(text, Schedule):
        return text
    kind, _, every = text.partition(":")
    if text == "after":
        return Schedule("after")
    if kind == "soft" and every.isdecimal() and int(every) > 0:
        return Schedule("soft", int(every))
    raise RecipeError(
        f"{text!r} is not a schedule: give 'after' (prune once, after training) or 'soft:S' "
        "(select units every S steps while training), such as 'soft:200'."
    )
