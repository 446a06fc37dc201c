"""Schedules: when pruning happens. One file each; adding one takes its file and its line in `SCHEDULES`."""

from __future__ import annotations

from reprune.core.errors import RecipeError
from reprune.core.schedule.after import After
from reprune.core.schedule.base import Schedule
from reprune.core.schedule.fractional import Fractional
from reprune.core.schedule.gradual import Gradual
from reprune.core.schedule.soft import Soft

SCHEDULES: dict[str, type[Schedule]] = {
    "after": After,
    "soft:S": Soft,
    "fractional:S": Fractional,
    "gradual:S": Gradual,
}

__all__ = ["SCHEDULES", "After", "Fractional", "Gradual", "Schedule", "Soft", "parse_schedule"]


def parse_schedule(text: str | Schedule) -> Schedule:
    """Read a schedule as it is written on a command line: a name in `SCHEDULES`, `S` being a number of steps.

    Raises:
        RecipeError: When the text is none of them.

    Example:
        >>> parse_schedule("soft:200")
        Soft(every=200)
    """
    if isinstance(text, Schedule):
        return text
    kind, colon, every = str(text).partition(":")
    for form, schedule in SCHEDULES.items():
        if form == kind + colon + "S" * bool(colon):
            if not colon:
                return schedule()
            if every.isdecimal() and int(every) > 0:
                return schedule(int(every))
    raise RecipeError(
        f"{text!r} is not a schedule: give one of {', '.join(SCHEDULES)}, S being the number of steps from one "
        "selection to the next, such as 'soft:200'; 'after' prunes once, when training is over."
    )
