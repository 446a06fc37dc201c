"""What notebooks show."""

from __future__ import annotations

from html.parser import HTMLParser

from reprune.core.plan import Plan
from reprune.report import Inspection
from reprune.verbs import Result
from tests.helpers.builders import stack


class Rows(HTMLParser):
    """The cells of a table, row by row, and the widths of its bars."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.widths: list[float] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "rect":
            self.widths.append(float(dict(attrs)["width"] or 0))

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_a_plan_is_a_table_with_bars() -> None:
    structure = stack(units=(8, 6)).structure
    first, second = structure.layers
    plan = Plan(structure, {first: [0, 1], second: list(range(6))})
    page = Rows(plan._repr_html_())
    assert [row[0] for row in page.rows] == ["Layer", first, second, "whole model"]
    assert [row[2] for row in page.rows[1:]] == ["8 → 2", "6 → 6", "14 → 8"]
    assert page.widths[1::2] == [40.0, 160.0, round(160 * 8 / 14, 1)]


def test_representations_are_short() -> None:
    structure = stack(units=(8, 6)).structure
    plan = Plan(structure, {name: [0, 1] for name in structure.layers})
    assert repr(Inspection(structure)) == "Inspection(2 of 2 layers can be pruned: 14 units)"
    assert repr(Result("a model", plan)) == f"Result(str, {plan!r})"
    assert Result("a model", plan)._repr_html_() == plan._repr_html_()
    assert "<table>" in Inspection(structure)._repr_html_()
