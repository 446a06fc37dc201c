import re
from dataclasses import replace

import pytest
from rich.cells import cell_len

from reprune.core.layers import CarriedState, Port, Span
from reprune.core.plan import Plan
from reprune.report import render_structure, render_table
from tests.report.conftest import CLASSES, FEATURES, energy_plan, stack


def lstm_parameters(width: int, units: int) -> int:
    return 4 * units * (width + units) + 8 * units


def lstm_macs(width: int, units: int) -> int:
    return 4 * units * (width + units)


def numbers_of(line: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", line)]


def row(table: str, name: str) -> str:
    (line,) = [line for line in table.splitlines() if line.startswith(name + " ")]
    return line.removeprefix(name)


def test_numbers_of_a_stack(plan: Plan) -> None:
    H0, H1 = 24, 16
    k0, k1 = plan.counts()["lstm:l0"], plan.counts()["lstm:l1"]
    assert k0 < H0
    assert k1 < H1
    table = render_table(plan, 120)
    assert numbers_of(row(table, "lstm:l0")) == [
        H0, k0, lstm_parameters(FEATURES, H0), lstm_parameters(FEATURES, k0),
        lstm_macs(FEATURES, H0), lstm_macs(FEATURES, k0),
    ]  # fmt: skip
    assert numbers_of(row(table, "lstm:l1")) == [
        H1, k1, lstm_parameters(H0, H1), lstm_parameters(k0, k1), lstm_macs(H0, H1), lstm_macs(k0, k1)
    ]  # fmt: skip
    parameters = [
        100 + lstm_parameters(FEATURES, a) + lstm_parameters(a, b) + CLASSES * b for a, b in ((H0, H1), (k0, k1))
    ]
    macs = [lstm_macs(FEATURES, a) + lstm_macs(a, b) + CLASSES * b for a, b in ((H0, H1), (k0, k1))]
    assert numbers_of(row(table, "whole model")) == [H0 + H1, k0 + k1, *parameters, *macs]
    fractions = [float(text) for text in re.findall(r"([\d.]+)%", row(table, "removed"))]
    assert fractions == pytest.approx(
        [100 * (1 - after / before) for before, after in ((H0 + H1, k0 + k1), parameters, macs)], abs=0.051
    )


def test_nothing_removed() -> None:
    structure = stack({"lstm:l0": 2})
    table = render_table(Plan(structure, {"lstm:l0": [0, 1]}), 100)
    assert "0% of units removed, 0% asked for" in table
    assert row(table, "removed").split() == ["0%", "0%", "0%"]


def test_groups_pins_and_approximations_are_told() -> None:
    structure = stack(
        {"a:l0": 8, "b:l0": 8, "c:l0": 8, "d:l0": 8, "e:l0": 4},
        index_coupled=[("a:l0", "b:l0")],
        count_coupled=[("c:l0", "d:l0")],
        pinned=["e:l0"],
        approximate=["d:l0"],
    )
    plan = energy_plan(structure, dict.fromkeys(["a:l0", "b:l0", "c:l0", "d:l0"], 1.5), 0.9)
    for text in (render_table(plan, 140), render_structure(structure, 140)):
        assert "a:l0, b:l0 lose the same units" in text
        assert "c:l0, d:l0 lose equally many units" in text
        assert "e:l0 is left alone: its units leave the model (aten.foo at model.py:12)" in text
        assert "layer_norm at model.py:34" in text
        assert re.search(r"^b:l0 .*\bA\b", text, re.MULTILINE)
        assert re.search(r"^d:l0 .*\bB\b", text, re.MULTILINE)
    assert "e:l0 (pinned)" in render_table(plan, 140)


def test_structure_names_the_readers() -> None:
    text = render_structure(stack({"lstm:l0": 24, "lstm:l1": 16}), 120)
    assert "2 of 2 recurrent layers can be pruned: 40 units" in text
    assert re.search(r"^lstm:l0 +lstm +24 +yes +lstm:l1.weight_ih$", text, re.MULTILINE)
    assert re.search(r"^lstm:l1 +lstm +16 +yes +head.weight$", text, re.MULTILINE)


def test_states_are_named_with_both_widths() -> None:
    port = Port(("state", 0), 1, 9, ((Span(1, "lstm:l0", 0, 8),),))
    back = replace(port, path=(2,))
    kept = replace(port, path=("rnn", "_buffers", "h"))
    structure = replace(stack({"lstm:l0": 8}), states=(CarriedState(port, back),), kept_states=(kept,))
    text = render_table(Plan(structure, {"lstm:l0": [0, 3, 4]}), 200)
    assert "argument state.0 (axis 1: 9 → 4 wide) comes back in output 2." in text
    assert "attribute rnn.h (axis 1: 9 → 4 wide)." in text
    assert "argument state.0 (axis 1: 9 wide, less what goes of lstm:l0)" in render_structure(structure, 200)


@pytest.mark.parametrize("name", ["[bold]x[/bold]:l0", "a:smile:l0", "a" * 90 + ":l0", "层:l0"])
def test_any_name_is_shown_as_it_is(name: str) -> None:
    structure = stack({name: 4})
    for text in (render_table(Plan(structure, {name: [0, 1]}), 300), render_structure(structure, 300)):
        assert name in text
        assert "\x1b" not in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_keeps_to_the_width(plan: Plan, width: int) -> None:
    for text in (render_table(plan, width), render_structure(plan.structure, width)):
        assert max(cell_len(line) for line in text.splitlines()) <= width


def test_a_narrow_table_leaves_columns_out_and_breaks_no_number(plan: Plan) -> None:
    wide, narrow = render_table(plan, 200), render_table(plan, 34)
    assert "MACs per time step" in wide
    assert "MACs" not in narrow
    for name in plan.kept:
        before, after = (str(count) for count in (plan.structure.layers[name].units, len(plan.kept[name])))
        assert re.search(rf"\b{before} → +{after}\b", row(narrow, name))


def test_group_labels_go_on_after_z() -> None:
    names = [f"l{index}" for index in range(56)]
    pairs = list(zip(names[::2], names[1::2], strict=True))
    text = render_structure(stack(dict.fromkeys(names, 2), index_coupled=pairs), 120)
    assert "group Z " in text
    assert "group AB" in text
