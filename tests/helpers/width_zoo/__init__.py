"""Small models whose widths count beside recurrent units, each with what a trace with `scope="all"` must find."""

from tests.helpers.width_zoo import attention, convolutions, heads, recurrences
from tests.helpers.width_zoo.case import WIDTH_CASES, WidthCase

__all__ = ["WIDTH_CASES", "WidthCase", "attention", "convolutions", "heads", "recurrences"]
