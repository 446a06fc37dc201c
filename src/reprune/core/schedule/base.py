"""What every schedule answers: when units are selected, how many of them, and what happens to their weights."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Schedule(ABC):
    """When pruning happens.

    Attributes:
        every: Optimiser steps from one selection to the next; 0 for a single one at the end.
        kind: Name of the schedule, as on a command line.
        shrinks: Whether selected units leave the model at once, which makes the rest of the training faster.
        needs_total: Whether the number of steps of the whole training must be known.
    """

    every: int = 0
    kind: ClassVar[str]
    shrinks: ClassVar[bool] = False
    needs_total: ClassVar[bool] = False

    def due(self, step: int) -> bool:
        """Whether units are selected right after optimiser step `step` (counted from 1)."""
        return self.every > 0 and step % self.every == 0

    def share(self, progress: float) -> float:
        """How much of the final ratio is selected when this fraction of the training is over."""
        return 1.0

    def factor(self, progress: float) -> float:
        """What the incoming weights of selected units are multiplied by, likewise."""
        return 0.0

    def __str__(self) -> str:
        return f"{self.kind}:{self.every}" if self.every else self.kind
