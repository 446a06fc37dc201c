from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reprune.core.budget.budget import Block, Budget, _fill_up, allocate
from reprune.core.budget.cost import COUNTED, CostModel
from reprune.core.errors import BudgetError
from tests.helpers.builders import stack


def allowed_sizes(budget, units):
    return {units, *(size for size in range(budget.min_units, units) if size % budget.round_to == 0)}


def brute_force(budget, blocks, cost, before):
    """Try every threshold; of the nearest models to the budget the larger one."""
    total = cost(budget.of, before)
    best = None
    for level in sorted({-1.0, *(float(t) for block in blocks for t in block.thresholds)}):
        counts = dict(before)
        for block in blocks:
            units = len(block.thresholds)
            wanted = units - int(np.sum(block.thresholds <= level))
            size = min(size for size in allowed_sizes(budget, units) if size >= wanted)
            counts.update(dict.fromkeys(block.layers, size))
        miss = abs(total - cost(budget.of, counts) - budget.ratio * total)
        if best is None or miss < best[0] - 1e-9 * total:
            best = miss, counts
    return best[1]


@st.composite
def problems(draw):
    units = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    together = draw(st.booleans())  # the first two layers may lose units at once
    if together and len(units) > 1:
        units[1] = units[0]
    model = stack(units, inputs=draw(st.integers(1, 6)), outputs=3)
    names = list(model.structure.layers)
    groups = [names[:2], *([name] for name in names[2:])] if together else [[name] for name in names]
    # All thresholds differ: with ties the order of steps is a rule of its own, tested below.
    values = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).permutation(100) / 100
    blocks = []
    for group in groups:
        size = model.structure.layers[group[0]].units
        blocks.append(Block(tuple(group), np.sort(values[:size])))
        values = values[size:]
    budget = Budget(
        ratio=draw(st.floats(0, 0.999)),
        of=draw(st.sampled_from(COUNTED)),
        min_units=draw(st.integers(1, 4)),
        round_to=draw(st.sampled_from([1, 1, 2, 4])),
    )
    return budget, blocks, CostModel(model.structure), model.structure.counts()


@given(problems())
def test_equals_brute_force_over_all_thresholds(problem):
    budget, blocks, cost, before = problem
    try:
        counts = allocate(budget, blocks, cost, before)
    except BudgetError:
        smallest = {
            name: min(allowed_sizes(budget, len(block.thresholds))) for block in blocks for name in block.layers
        }
        assert cost(budget.of, before) - cost(budget.of, smallest) < budget.ratio * cost(budget.of, before)
        return
    expected = brute_force(*problem)
    if all(len(block.layers) == 1 for block in blocks):
        assert counts == expected
    else:
        total, target = cost(budget.of, before), budget.ratio * cost(budget.of, before)
        missed, plain = (abs(total - cost(budget.of, found) - target) for found in (counts, expected))
        assert missed <= plain + 1e-9 * total


@given(problems())
def test_is_met_to_within_one_step_and_inside_the_bounds(problem):
    budget, blocks, cost, before = problem
    try:
        counts = allocate(budget, blocks, cost, before)
    except BudgetError:
        assume(False)
    total = cost(budget.of, before)
    steps = []
    for block in blocks:
        size = counts[block.layers[0]]
        permitted = sorted(allowed_sizes(budget, len(block.thresholds)))
        assert {counts[name] for name in block.layers} == {size}
        assert size in permitted
        place = permitted.index(size)
        for near in permitted[max(place - 1, 0) : place + 2]:
            steps.append(abs(cost(budget.of, counts) - cost(budget.of, counts | dict.fromkeys(block.layers, near))))
    floor = len(before) if budget.of == "units" and budget.min_units == 1 else 0
    missed = abs(total - cost(budget.of, counts) - budget.ratio * total)
    assert missed <= max(max(steps), floor) + 1e-9 * total


def one_layer(units):
    model = stack((units,))
    return [Block(("a",), np.arange(units) / units)], CostModel(model.structure), {"a": units}


def test_nothing_to_remove():
    for of in COUNTED:
        assert allocate(Budget(0.0, of), *one_layer(8)) == {"a": 8}


def test_just_under_everything_leaves_one_unit():
    assert allocate(Budget(0.999999), *one_layer(8)) == {"a": 1}
    assert allocate(Budget(0.5), *one_layer(1)) == {"a": 1}


@pytest.mark.parametrize(("ratio", "kept"), [(0.06, 8), (0.0625, 8), (0.063, 7), (0.1875, 7), (0.5, 4), (0.55, 4)])
def test_the_nearer_step_is_taken_and_of_two_the_larger_model(ratio, kept):
    assert allocate(Budget(ratio), *one_layer(8)) == {"a": kept}


@pytest.mark.parametrize(("ratio", "kept"), [(0.1, 20), (0.2, 16), (0.49, 8), (0.6, 8)])
def test_sizes_are_rounded(ratio, kept):
    assert allocate(Budget(ratio, round_to=8), *one_layer(20)) == {"a": kept}


def test_equal_thresholds_shrink_the_larger_layer_first():
    model = stack((5, 3))
    blocks = [Block(("b",), np.zeros(3)), Block(("a",), np.zeros(5))]
    sizes = [allocate(Budget(gone / 8), blocks, CostModel(model.structure), {"a": 5, "b": 3}) for gone in range(7)]
    assert [(size["a"], size["b"]) for size in sizes] == [(5, 3), (4, 3), (3, 3), (3, 2), (2, 2), (2, 1), (1, 1)]


@pytest.mark.parametrize(
    "budget",
    [Budget(0.9, min_units=4), Budget(0.99, "macs"), Budget(0.99, "parameters"), Budget(0.8, "macs", round_to=5)],
)
def test_an_impossible_budget_names_the_nearest_possible(budget):
    blocks, cost, before = one_layer(8)
    with pytest.raises(BudgetError, match="cannot be met") as caught:
        allocate(budget, blocks, cost, before)
    nearest = float(str(caught.value).split("Ask for ratio=")[1].split(" ")[0])
    nearest_budget = Budget(nearest, budget.of, budget.min_units, budget.round_to)
    smallest = min(allowed_sizes(budget, 8))
    assert allocate(nearest_budget, blocks, cost, before) == {"a": smallest}
    removable = 1 - cost(budget.of, {"a": smallest}) / cost(budget.of, before)
    assert removable - 1e-4 <= nearest <= removable


@pytest.mark.parametrize(
    "wrong",
    [
        {"ratio": 1.0},
        {"ratio": -0.1},
        {"ratio": float("nan")},
        {"ratio": 0.5, "of": "flops"},
        {"ratio": 0.5, "min_units": 0},
        {"ratio": 0.5, "min_units": 1.5},
        {"ratio": 0.5, "round_to": -8},
    ],
)
def test_wrong_values(wrong):
    with pytest.raises(BudgetError):
        Budget(**wrong)


def test_smaller_steps_fill_up_where_a_coupled_block_is_too_much():
    model = stack((8, 8, 8, 8, 8))
    blocks = [Block(("a", "b", "c", "d"), np.arange(8) / 8), Block(("e",), np.arange(8) / 8 + 0.9)]
    cost, before = CostModel(model.structure), model.structure.counts()
    for units in range(1, 34):
        counts = allocate(Budget(units / 40), blocks, cost, before)
        assert abs(40 - sum(counts.values()) - units) <= max(0, units - 7 * 4 - 7), units
        assert counts["a"] == counts["b"] == counts["c"] == counts["d"]


@pytest.mark.parametrize("seed", range(4))
def test_a_layer_alone_makes_up_for_a_pair_that_can_only_lose_two(seed):
    places = np.random.default_rng(seed).permutation(24)
    model = stack((8, 8, 8, 8))
    cost, before = CostModel(model.structure), model.structure.counts()
    pairs, alone = np.sort(places[:8]), (np.sort(places[8:16]), np.sort(places[16:]))
    blocks = [Block(("a", "b"), pairs), *(Block((name,), held) for name, held in zip("cd", alone, strict=True))]
    for units in range(29):
        counts = allocate(Budget(units / 32), blocks, cost, before)
        assert counts["a"] == counts["b"]
        gone = 32 - sum(counts.values())
        assert gone == units or (gone == units - 1 and counts["c"] == counts["d"] == 1)


def test_fixed_layers_stay_and_the_others_meet_the_budget():
    model = stack((8, 8, 8))
    cost, before = CostModel(model.structure), model.structure.counts()
    blocks = [Block((name,), np.arange(8) / 8) for name in "bc"]
    counts = allocate(Budget(0.5), blocks, cost, before, {"a": 6})
    assert counts["a"] == 6
    assert sum(counts.values()) == 12
    with pytest.raises(BudgetError, match=r"counts= alone lose 0\.2083\. Ask for ratio=0\.2084 or more"):
        allocate(Budget(0.1), blocks, cost, before, {"a": 3})
    assert allocate(Budget(0.9), [], cost, before, dict.fromkeys("abc", 5)) == dict.fromkeys("abc", 5)


def test_a_unit_budget_may_miss_by_what_layers_must_keep_and_by_rounding():
    cost, before = CostModel(stack((93, 4, 3)).structure), {"a": 93, "b": 4, "c": 3}
    blocks = [Block(("b",), np.arange(4) / 4, least=2), Block(("c",), np.arange(3) / 3)]
    # Seven of a hundred units are free, of which one layer keeps two and the other one.
    for ratio in (0.07, 0.07 + 5e-10):
        assert allocate(Budget(ratio), blocks, cost, before, {"a": 93}) == {"a": 93, "b": 2, "c": 1}
    with pytest.raises(BudgetError, match=r"at most 0\.04 can be removed"):
        allocate(Budget(0.07 + 5e-9), blocks, cost, before, {"a": 93})


def test_without_a_ratio_units_go_whose_threshold_the_level_reaches():
    blocks, cost, before = one_layer(8)
    kept = [allocate(Budget(None), blocks, cost, before, level=level)["a"] for level in (-0.1, 0.0, 0.3, 0.5, 2.0)]
    assert kept == [8, 7, 5, 3, 1]


def test_a_block_of_which_one_step_does_not_fit_gives_no_more():
    first, second, other = (0.1, 0, 3), (0.2, 0, 2), (0.3, 1, 5)
    room = {(first,): -1.0, (second,): 1.0, (other,): 0.0, (second, other): 1.0}
    assert _fill_up([], [first, second, other], lambda steps: room[tuple(steps)]) == [other]
