import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reprune.core.plan import Diagnostics, Plan
from reprune.report import figures, write_report
from reprune.report.metrics import metric_rows
from tests.report.conftest import energy_plan, spectrum, stack
from tests.report.page import Element, read_page
from tests.report.test_table import lstm_macs, lstm_parameters


def written(path: Path, plan: Plan, summary: dict[str, Any] | None = None, **options: str) -> Element:
    write_report(path / "report.html", plan, summary, **options)
    return read_page((path / "report.html").read_text(encoding="utf-8"))


def cells(row: Element) -> list[str]:
    return [cell.text for cell in row.all("td")]


def numbers(text: str) -> list[float]:
    return [float(word.replace(",", "")) for word in text.split() if word[0].isdigit() and not word.endswith("%")]


def test_table_equals_the_plan(tmp_path: Path, plan: Plan) -> None:
    page = written(tmp_path, plan)
    k0, k1 = plan.counts().values()
    rows = page.one("table", id="table").one("tbody").all("tr")
    assert [row.attributes["data-layer"] for row in rows] == ["lstm:l0", "lstm:l1"]
    expected = [
        [[24, k0], [lstm_parameters(8, 24), lstm_parameters(8, k0)], [lstm_macs(8, 24), lstm_macs(8, k0)]],
        [[16, k1], [lstm_parameters(24, 16), lstm_parameters(k0, k1)], [lstm_macs(24, 16), lstm_macs(k0, k1)]],
    ]
    assert [[numbers(cell) for cell in cells(row)] for row in rows] == expected
    total = cells(page.one("tfoot").one("tr"))
    other = [100 + 5 * 16, 100 + 5 * k1]
    assert numbers(total[0]) == [40, k0 + k1]
    assert numbers(total[1]) == [sum(row[1][side] for row in expected) + other[side] for side in (0, 1)]
    assert numbers(total[2]) == [sum(row[2][side] for row in expected) + other[side] - 100 for side in (0, 1)]


def test_spectra_and_threshold(tmp_path: Path, plan: Plan) -> None:
    page = written(tmp_path, plan)
    energies = {}
    for name in ("lstm:l0", "lstm:l1"):
        values = np.asarray(plan.diagnostics.spectra[name])
        energies[name] = values[: len(plan.kept[name])].sum() / values.sum()
        figure = page.one("figure", class_="spectrum", data_layer=name)
        assert figure.attributes["data-kept"] == str(len(plan.kept[name]))
        assert float(figure.attributes["data-energy"] or "") == pytest.approx(energies[name])
        caption = figure.one("figcaption").text
        assert f"{len(plan.kept[name])} of {len(values)} units stay" in caption
        assert f"carry {100 * energies[name]:.1f}%" in caption
        assert "threshold alone" not in caption
    threshold = figures.energy_threshold(plan)
    assert threshold == pytest.approx(min(energies.values()))
    assert threshold >= 0.9 - 1e-12
    assert f"reach {100 * threshold:.1f}% of its energy" in page.text


def test_curve_runs_through_the_cut(plan: Plan) -> None:
    for figure in figures.spectra(plan):
        start, *points = figure.curve.removeprefix("M").split("L")
        x, y = np.array([[float(word) for word in point.split()] for point in points]).T
        assert start == "0 0"
        values = np.asarray(plan.diagnostics.spectra[figure.layer])
        # 10 to the power of minus the depth is what is left out; at the bottom of the axis everything below it, too.
        left_out, bottom = 1 - np.cumsum(values) / values.sum(), 10.0**-figure.left
        assert 10 ** (-figure.left * y / 100) == pytest.approx(np.maximum(left_out, bottom), rel=1e-2)
        assert figure.level(1 - bottom) == pytest.approx(100)
        assert figure.level(0.0) == 0
        assert x[figure.kept - 1] / 10 == pytest.approx(figure.cut, abs=1e-2)


def test_scores_of_the_units_that_went(tmp_path: Path, plan: Plan) -> None:
    page = written(tmp_path, plan)
    for name, gone in plan.removed().items():
        items = page.one("figure", class_="scores", data_layer=name).all("li")
        shown = {int(item.attributes["data-unit"] or -1): float(item.text.split()[-1]) for item in items}
        assert sorted(shown) == gone
        expected = plan.diagnostics.scores[name]
        assert list(shown.values()) == sorted(shown.values())
        for unit, score in shown.items():
            assert score == pytest.approx(expected[unit], rel=1e-3)


def test_strip_shows_which_units_stay() -> None:
    structure = stack({"lstm:l0": 6})
    (figure,) = figures.scores(Plan(structure, {"lstm:l0": [0, 1, 4]}))
    assert figure.strip == "M0 100V0H333.33V100ZM666.67 100V0H833.33V100Z"
    assert figure.removed == [(2, None), (3, None), (5, None)]


def test_metrics_before_and_after(tmp_path: Path, plan: Plan, summary: dict[str, Any]) -> None:
    page = written(tmp_path, plan, summary)
    rows = {row.attributes["data-key"]: cells(row) for row in page.one("table", id="metrics").one("tbody").all("tr")}
    assert set(rows) == set(summary["dense"])
    assert rows["gap"] == ["0.9812", "0.9761", "−0.0051 worse"]
    assert rows["map"] == ["0.9700", "0.9720", "+0.0020 better"]
    assert rows["hit_at_1"] == ["0.9600", "0.9600", "unchanged"]
    assert rows["perplexity"] == ["82.5", "84.25", "+2.1% worse"]
    assert rows["parameters"] == ["5,417", "2,345", "−56.7% better"]
    assert rows["latency_ms"] == ["3.25", "1.75", "−46.2% better"]
    assert "GAP@20 went from 0.9812 to 0.9761 (higher is better)" in page.text
    assert "train 1 min 2 s, prune 0.8 s, fine tune 20 s" in page.text


def test_unknown_and_missing_metrics() -> None:
    rows = metric_rows(
        {
            "dense": {"my_score": 2.0, "only_dense": 1, "name": "x", "flag": True, "loss": float("nan")},
            "pruned": {"my_score": 3.0, "extra": 0.5, "loss": float("nan")},
        }
    )
    assert [row.key for row in rows] == ["my_score", "only_dense", "loss", "extra"]
    assert rows[0].known.name == "My score"
    assert (rows[0].change, rows[0].verdict) == ("+50.0%", "")
    assert rows[1].texts == ("1", "not measured")
    assert rows[2].verdict == ""
    assert metric_rows({}) == metric_rows({"dense": None}) == []


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>&\"'x:l0"
    plan = energy_plan(stack({name: 6, "p<b>": 2}, pinned=["p<b>"]), {name: 1.5}, 0.8)
    page = written(tmp_path, plan, {"dense": {"<m>m": 1}, "pruned": {"<m>m": 2}}, title="<u>T</u>")
    assert not any(page.all(tag) for tag in ("script", "u", "m"))
    assert name in [code.text for code in page.all("code")]
    assert page.one("h1").text == "<u>T</u>"


def test_coupled_layers_are_cut_on_their_mean_curve(tmp_path: Path) -> None:
    structure = stack({"a": 32, "b": 32, "c": 32}, index_coupled=[("a", "b")], count_coupled=[("b", "c")])
    spectra = {name: spectrum(32, decay) for name, decay in {"a": 2.0, "b": 0.5, "c": 0.7}.items()}
    shares = np.mean([np.asarray(values) / sum(values) for values in spectra.values()], axis=0)
    stay = int(np.searchsorted(np.cumsum(shares), 0.8)) + 1
    plan = Plan(
        structure, {name: list(range(stay)) for name in "abc"}, "iss-gm", 0.5, "units", Diagnostics({}, spectra)
    )
    assert figures.energy_threshold(plan) == pytest.approx(np.cumsum(shares)[stay - 1])
    page = written(tmp_path, plan)
    captions = [figure.one("figcaption").text for figure in page.all("figure", class_="spectrum")]
    assert ["mean curve of group A." in text for text in captions] == [True, False, False]
    assert "mean curve of group A and B." in captions[1]
    assert not any("threshold alone" in text for text in captions)


def test_a_dead_layer_in_a_group_does_not_lower_the_threshold() -> None:
    structure = stack({"a": 8, "b": 8, "c": 8}, index_coupled=[("a", "b")])
    values = spectrum(8, 0.5)
    spectra = {"a": values, "b": [0.0] * 8, "c": values}
    lost = sum(values[6:]) / sum(values)
    plan = Plan(structure, {name: list(range(6)) for name in "abc"}, "iss-gm", 0.25, "units", Diagnostics({}, spectra))
    assert figures.energy_threshold(plan) == pytest.approx(1 - lost)


def test_rounding_is_told(tmp_path: Path) -> None:
    structure = stack({"a": 32, "b": 32})
    plan = energy_plan(structure, {"a": 1.5, "b": 0.3}, 0.8)
    kept = {**plan.kept, "a": list(range(len(plan.kept["a"]) + 5))}
    page = written(tmp_path, Plan(structure, kept, "iss-gm", 0.5, "units", plan.diagnostics))
    share_a, share_b = (np.asarray(values) / sum(values) for values in plan.diagnostics.spectra.values())
    asked = int(np.searchsorted(np.cumsum(share_a), share_b[: len(plan.kept["b"])].sum())) + 1
    assert asked < len(kept["a"])
    assert f"The threshold alone asks for {asked};" in page.one("figure", class_="spectrum", data_layer="a").text


@pytest.mark.parametrize("method", ["magnitude", "random", "custom"])
def test_no_threshold_where_none_was_used(plan: Plan, method: str, tmp_path: Path) -> None:
    other = Plan(plan.structure, plan.kept, method, 0.5, "units", plan.diagnostics)
    assert figures.energy_threshold(other) is None
    assert "threshold" not in written(tmp_path, other).one("main").text
    own = Plan(
        plan.structure, plan.kept, "Method(allocation='energy', criterion='random')", 0.5, "units", plan.diagnostics
    )
    assert figures.energy_threshold(own) == figures.energy_threshold(plan)


def test_plans_with_little_to_show(tmp_path: Path) -> None:
    structure = stack({"lstm:l0": 8})
    page = written(tmp_path, Plan(structure, {"lstm:l0": list(range(8))}))
    assert "Nothing was removed" in page.text
    assert "No unit went" in page.text
    page = written(tmp_path, Plan(structure, {"lstm:l0": [0, 3]}, "custom", 0.75))
    assert "1–2, 4–7" in page.one("details").text
    dead = Plan(
        structure, {"lstm:l0": [5]}, "iss-gm", 0.8, "units", Diagnostics({"lstm:l0": [1.0] * 8}, {"lstm:l0": [0.0] * 8})
    )
    assert "never moved" in written(tmp_path, dead).one("figure", class_="spectrum").text


def test_replaces_the_file_as_a_whole(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(path, plan)
    write_report(os.fspath(path), plan, title="Second")
    assert "Second" in path.read_text(encoding="utf-8")

    def full(self: Path, *args: object, **kwargs: object) -> int:
        self.touch()
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        write_report(path, plan, title="Third")
    assert "Second" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]


def test_large_reports_stay_small(tmp_path: Path) -> None:
    names = [f"lstm:l{index}" for index in range(12)]
    plan = energy_plan(stack(dict.fromkeys(names, 1500)), dict.fromkeys(names, 1.0), 0.9)
    write_report(tmp_path / "report.html", plan)
    assert (tmp_path / "report.html").stat().st_size < 1_500_000


def test_says_when_and_with_what_it_was_made(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/reprune", "prune", "--ratio", "0.5"])
    write_report(tmp_path / "report.html", plan)
    text = (tmp_path / "report.html").read_text()
    assert re.search(r"Written \d{4}-\d\d-\d\d \d\d:\d\d .*reprune \d+\.\d+.* by: reprune prune --ratio 0\.5", text)
    assert "was not measured here" in text
