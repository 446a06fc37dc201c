"""Latency as a budget, on tables small enough to work out by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from reprune.core.budget.budget import Block, Budget, Request, allocate
from reprune.core.budget.cost import CostModel
from reprune.core.budget.latency import LatencyTable, TimedPart, TimeGrid
from reprune.core.decide import decide
from reprune.core.errors import BudgetError, PlanError
from reprune.core.layers import Extent
from reprune.core.plan import Plan
from tests.helpers.builders import stack


def units(name: str) -> Extent:
    return Extent(0, ((name, 1),))


ONE = LatencyTable(
    runtime="torch 0",
    threads=1,
    shapes=((1, 7, 5),),
    layers={"a": 8},
    dense_ms=14.0,
    small={"a": 1},
    small_ms=3.0,
    parts=(TimedPart("a", 0, Extent(5), units("a")),),
    grids=(TimeGrid("lstm", 1, 7, (5,), (1, 4, 8), ((1.0, 4.0, 12.0),)),),
    rounding=((1, 1.2), (2, 1.0), (4, 1.0)),
)
"""A layer takes 1, 4, 12 ms at 1, 4, 8 units, the rest 2 ms."""

# b reads a: at (a, b) = (2, 2), (2, 4), (4, 2), (4, 4) it takes 1, 2, 3, 6 ms; a takes as many ms as it has units.
TWO = LatencyTable(
    runtime="torch 0",
    threads=1,
    shapes=((1, 7, 5),),
    layers={"a": 4, "b": 4},
    dense_ms=20.0,
    small={"a": 2, "b": 2},
    small_ms=6.0,
    parts=(TimedPart("a", 0, Extent(5), units("a")), TimedPart("b", 1, units("a"), units("b"), calls=1)),
    grids=(
        TimeGrid("lstm", 1, 7, (5,), (2, 4), ((2.0, 4.0),)),
        TimeGrid("lstm", 1, 7, (2, 4), (2, 4), ((1.0, 2.0), (3.0, 6.0))),
    ),
)


@pytest.mark.parametrize(("kept", "ms"), [(8, 14), (7, 12), (6, 10), (4, 6), (3, 5), (1, 3)])
def test_between_measured_sizes_time_is_a_line(kept, ms):
    assert replace(ONE)({"a": kept}) == pytest.approx(ms)


@pytest.mark.parametrize(
    ("a", "b", "ms"),
    # Of both layers, 10 ms dense and 3 ms small become 20 and 6: twice as much, and nothing beside them.
    [(4, 4, 20), (2, 2, 6), (4, 2, 2 * (4 + 3)), (3, 4, 2 * (3 + 4)), (3, 3, 2 * (3 + (1 + 2 + 3 + 6) / 4))],
)
def test_layers_are_measured_over_inputs_and_units(a, b, ms):
    assert replace(TWO)({"a": a, "b": b}) == pytest.approx(ms)


@pytest.mark.parametrize("shape", [(3, 4), (1, 4), (3, 1), (1, 1)])
def test_times_are_those_of_scipy_between_sizes_and_of_the_nearest_size_outside(shape):
    rng = np.random.default_rng(0)
    axes = [tuple(np.cumsum(rng.integers(1, 9, size=size)).tolist()) for size in shape]
    # Neither axis may fall: a table that does is raised first.
    measured = rng.uniform(1, 9, size=shape)
    rising = [[measured[: row + 1, : column + 1].max() for column in range(shape[1])] for row in range(shape[0])]
    grid = TimeGrid("lstm", 1, 7, axes[0], axes[1], tuple(map(tuple, measured.tolist())))
    many = [axis if len(axis) > 1 else (axis[0], axis[0] + 1) for axis in axes]
    held = np.array(rising)[:, [*range(shape[1]), *([0] * (shape[1] == 1))]][
        [*range(shape[0]), *([0] * (shape[0] == 1))]
    ]
    expected = RegularGridInterpolator(many, held)
    for inputs in range(30):
        for units in (1, axes[1][0], 8, 13, 40):
            near = [min(max(at, axis[0]), axis[-1]) for at, axis in ((inputs, axes[0]), (units, axes[1]))]
            assert grid(inputs, units) == pytest.approx(float(expected(near)[0]))


def test_a_constant_is_never_negative():
    # The line through both ends would meet no units at -1 ms.
    steep = replace(ONE, dense_ms=12.0, small_ms=0.5)
    assert steep({"a": 8}) == 12.0
    assert steep({"a": 1}) == pytest.approx(1.0)
    # Where no layer was measured all is constant.
    assert replace(ONE, parts=(), grids=())({"a": 4}) == 14.0
    # A small model that is slower than the dense one says that the layers do not matter.
    assert replace(ONE, small_ms=15.0)({"a": 1}) == 14.0


def test_larger_layers_are_never_faster():
    dented = replace(ONE, grids=(TimeGrid("lstm", 1, 7, (5,), (1, 4, 8), ((1.0, 13.0, 12.0),)),))
    times = [dented({"a": kept}) for kept in range(1, 9)]
    assert times == sorted(times)


def test_calls_count():
    # Twice 1, 4, 12 ms, and once as many milliseconds as there are units.
    head = TimedPart("head", 1, units("a"), Extent(2))
    twice = replace(
        ONE,
        parts=(replace(ONE.parts[0], calls=2), head),
        grids=(*ONE.grids, TimeGrid("linear", 7, 1, (1, 8), (2,), ((1.0,), (8.0,)))),
        dense_ms=32.0,
        small_ms=3.0,
    )
    assert twice({"a": 4}) == pytest.approx(2 * 4 + 4)


@pytest.mark.parametrize(
    ("rounding", "multiple"),
    [
        ((), 1),
        (((1, 1.0), (2, 1.01), (4, 1.0)), 1),
        (((1, 1.3), (2, 1.2), (4, 1.0), (8, 1.02), (16, 1.0)), 4),
        (((1, 1.0), (2, 1.0), (4, 1.2), (8, 1.0)), 8),
    ],
)
def test_the_multiple_that_kernels_like(rounding, multiple):
    assert replace(ONE, rounding=rounding).multiple == multiple


def one_layer(table=ONE):
    structure = stack((8,)).structure
    return [Block(("a",), np.arange(8) / 8)], CostModel(structure, table), structure.counts()


@pytest.mark.parametrize(
    ("request_", "kept"),
    [
        (Request(0.5, "latency"), 5),  # 7 ms: 5 units take 8, 4 take 6, and of two as near the larger model is taken
        (Request(of="latency", target_ms=7), 4),  # a target is reached
        (Request(of="latency", target_ms=8), 5),
        (Request(of="latency", target_ms=3), 1),
        (Request(of="latency", target_ms=14), 8),
        (Request(of="latency", target_ms=1e6), 8),
        (Request(0.5, "latency", round_to="auto"), 4),
        (Request(of="latency", target_ms=9, round_to="auto"), 4),
        (Request(0.25, "units", round_to="auto"), 6),
    ],
)
def test_budgets_by_hand(request_, kept):
    blocks, cost, before = one_layer()
    assert allocate(request_.budget(ONE), blocks, cost, before) == {"a": kept}


def test_an_impossible_target_names_the_nearest():
    blocks, cost, before = one_layer()
    with pytest.raises(BudgetError, match=r"3 of its 14 ms at least. Ask for target_ms=3 or more"):
        allocate(Request(of="latency", target_ms=2.5).budget(ONE), blocks, cost, before)
    with pytest.raises(BudgetError, match=r"at most 0.7857 can be removed. Ask for ratio=0.7857"):
        allocate(Request(0.9, "latency").budget(ONE), blocks, cost, before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_ms": 5.0},
        {"target_ms": 0.0, "of": "latency"},
        {"target_ms": float("nan"), "of": "latency"},
        {"target_ms": "5", "of": "latency"},
        {"target_ms": True, "of": "latency"},
        {"target_ms": 5.0, "of": "latency", "ratio": 0.4},
        {"round_to": "automatic"},
        {"of": "flops"},
        {"ratio": 1.5, "of": "latency"},
    ],
)
def test_wrong_requests(wrong):
    with pytest.raises(BudgetError):
        Request(**wrong)


def test_times_are_needed_for_latency_and_for_the_multiple_that_kernels_like():
    requests = Request(), Request(round_to=2), Request(of="latency"), Request(round_to="auto")
    assert [request.needs_table for request in requests] == [False, False, True, True]
    assert [request.budget(None).round_to for request in requests if request.of == "units"] == [1, 2, 1]


def test_what_is_no_table_is_refused():
    assert Request(of="latency", target_ms=0.5).budget(ONE) == Budget(None, "latency", target_ms=0.5, latency=ONE)
    with pytest.raises(BudgetError, match=r"is no table: give measure_latency"):
        Request().budget("table.json")


def test_latency_without_times():
    with pytest.raises(BudgetError, match="give of='macs'"):
        Budget(0.5, "latency")


def test_a_plan_carries_the_table():
    model = stack((4, 4))
    plan = decide(model.evidence(), Request(of="latency", target_ms=13.5).budget(TWO), "magnitude")
    assert plan.ratio == pytest.approx(0.325)
    assert TWO(plan.counts()) < 13.5
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.latency == TWO
    for broken in (replace(TWO, layers={"a": 4, "b": 5}), None):
        with pytest.raises(PlanError, match="latency table"):
            replace(plan, latency=broken)


def test_a_table_of_another_model_is_refused():
    with pytest.raises(PlanError, match="measured for a model of"):
        decide(stack((4,)).evidence(), Request(of="latency").budget(ONE), "magnitude")
    with pytest.raises(PlanError, match="measured for a model of"):
        decide(stack((4,)).evidence(), Request(of="latency").budget(TWO), "magnitude")


def test_round_trip(tmp_path):
    assert LatencyTable.from_json(TWO.to_json()) == TWO
    (tmp_path / "t.json").write_text(ONE.to_json())
    assert LatencyTable.read(tmp_path / "t.json") == ONE
    with pytest.raises(PlanError, match="cannot be read"):
        LatencyTable.read(tmp_path / "missing.json")


DOCUMENT = json.loads(ONE.to_json())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dense_ms", 0),
        ("dense_ms", None),
        ("dense_ms", float("nan")),
        ("small_ms", -1.0),
        ("small_ms", "1"),
        ("small", {"b": 1}),
        ("small", {"a": 0}),
        ("layers", {"a": 10**300}),
        ("threads", 0),
        ("parts", [{**DOCUMENT["parts"][0], "grid": 1}]),
        ("parts", [{**DOCUMENT["parts"][0], "grid": -1}]),
        ("parts", [{**DOCUMENT["parts"][0], "units": {"fixed": 0, "layers": [["z", 1]]}}]),
        ("parts", [{**DOCUMENT["parts"][0], "units": {"fixed": -(10**300), "layers": [["a", 1]]}}]),
        ("parts", [{**DOCUMENT["parts"][0], "calls": 10**300}]),
        ("grids", []),
        ("grids", [{**DOCUMENT["grids"][0], "units": [4, 1, 8]}]),
        ("grids", [{**DOCUMENT["grids"][0], "units": [1, 1, 8]}]),
        ("grids", [{**DOCUMENT["grids"][0], "units": []}]),
        ("grids", [{**DOCUMENT["grids"][0], "units": [1, 4, 10**300]}]),
        ("grids", [{**DOCUMENT["grids"][0], "ms": [[1.0, 2.0]]}]),
        ("grids", [{**DOCUMENT["grids"][0], "ms": [[1.0, 2.0, -3.0]]}]),
        ("grids", [{**DOCUMENT["grids"][0], "ms": [[1.0, 2.0, float("inf")]]}]),
        ("rounding", [[0, 1.0]]),
        ("rounding", [[2, 0.0]]),
        ("rounding", [[2, float("inf")]]),
        ("more", 1),
    ],
)
def test_damaged_tables_are_refused(field, value):
    with pytest.raises(PlanError, match=r"latency table"):
        LatencyTable.from_json(json.dumps({**DOCUMENT, field: value}))


@pytest.mark.parametrize(
    ("text", "where"), [("[]", "top level"), (json.dumps({**DOCUMENT, "dense_ms": None}), "dense_ms")]
)
def test_it_is_said_where_a_table_is_damaged(text, where):
    with pytest.raises(PlanError, match=f"Not a latency table: {where}: "):
        LatencyTable.from_json(text)


@given(st.integers(0, len(ONE.to_json()) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_damaged_bytes_are_tables_or_plan_errors(start, inserted, dropped):
    text = ONE.to_json().encode()
    try:
        table = LatencyTable.from_json(text[:start] + inserted + text[start + dropped :])
    except PlanError:
        return
    assert np.isfinite(table(table.small))


def test_layers_count_as_measured_where_no_second_size_of_the_model_says_otherwise():
    # 12 of 14 ms are the layer's, and at 4 units 4.
    assert replace(ONE, small={"a": 8}, small_ms=14.0)({"a": 4}) == 4.0 + 2.0


def test_no_size_takes_no_time():
    with pytest.raises(PlanError, match="not positive and finite"):
        replace(ONE, grids=(replace(ONE.grids[0], ms=((0.0, 4.0, 12.0),)),))
