"""After: one shot when training is over; what follows is fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from reprune.core.schedule.base import Schedule


@dataclass(frozen=True)
class After(Schedule):
    """Nothing is selected before the end."""

    kind = "after"
