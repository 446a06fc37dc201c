"""Plans of random units: about half of them go, and numbers differ wherever they can."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from reprune.core.layers import Layer, Site, Slot, Span, Structure
from reprune.core.rehearsal import blocks_of, held_back, inexact, random_plan
from tests.helpers.builders import stack


def layers_of(sizes, least=1):
    """Layers beside each other that nothing ties together."""
    layers = {name: Layer(name, "lstm", size, least=least) for name, size in zip("abcdefg", sizes, strict=False)}
    return Structure(
        layers=layers,
        slots=tuple(Slot(name, 0, of.units, "own", (Span(0, name, 0, of.units),)) for name, of in layers.items()),
        shapes={name: (of.units,) for name, of in layers.items()},
        index_coupled=tuple((name,) for name in layers),
    )


def sizes_of(structure, seeds):
    return np.array([list(random_plan(structure, blocks_of(structure), seed).counts().values()) for seed in seeds])


def test_from_35_to_65_percent_stay():
    found = sizes_of(layers_of([400]), range(200))
    assert 140 <= found.min() <= 145
    assert 255 <= found.max() <= 260
    assert found.mean() == pytest.approx(200, abs=6)


def test_every_unit_is_as_likely_to_stay_and_each_stays_once():
    structure = layers_of([40])
    plans = [random_plan(structure, [["a"]], seed).kept["a"] for seed in range(200)]
    assert all(list(kept) == sorted(set(kept)) for kept in plans)
    stayed = np.bincount(np.concatenate(plans), minlength=40) / 200
    assert stayed == pytest.approx(np.full(40, 0.5), abs=0.16)


def test_layers_of_equal_size_keep_different_numbers_near_what_was_drawn():
    found = sizes_of(layers_of([10] * 5), range(30))
    assert all(len(set(sizes)) == 5 for sizes in found.tolist())
    # Three numbers at either side of each half are tried before any other.
    assert found.min() >= 2
    assert found.max() <= 8


@pytest.mark.parametrize(("units", "least"), [(3, 1), (4, 1), (4, 2)])
def test_where_all_numbers_are_taken_neighbours_differ(units, least):
    for sizes in sizes_of(layers_of([units] * 7, least), range(20)).tolist():
        choices = units - least
        assert all(least <= size < units for size in sizes)
        assert len(set(sizes[:choices])) == choices
        assert all(one != other for one, other in pairwise(sizes))


@pytest.mark.parametrize(("units", "least", "kept"), [(1, 1, 1), (2, 1, 1), (3, 2, 2), (3, 3, 3)])
def test_a_layer_with_one_choice_or_none_takes_it(units, least, kept):
    assert (sizes_of(layers_of([units] * 3, least), range(5)) == kept).all()


def test_layers_that_lose_units_together_keep_the_same_ones_and_others_all():
    structure = stack(
        (9, 9, 9, 9, 9), index_coupled=[["a", "b"], ["c"], ["d"], ["e"]], count_coupled=[["b", "c"]]
    ).structure
    blocks = blocks_of(structure)
    assert sorted(map(sorted, blocks)) == [["a", "b", "c"], ["d"], ["e"]]
    for seed in range(5):
        plan = random_plan(structure, [block for block in blocks if block != ["e"]], seed)
        assert plan.kept["a"] == plan.kept["b"] != plan.kept["c"]
        assert len(plan.kept["a"]) == len(plan.kept["c"]) != len(plan.kept["d"])
        assert list(plan.kept["e"]) == list(range(9))
    plans = [random_plan(structure, blocks, seed).kept for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
    assert random_plan(structure, blocks).kept == plans[0]


def cut():
    """A weight whose rows are the units of two layers, one after the other, and a layer as wide as both."""
    return Structure(
        layers={name: Layer(name, "lstm", size) for name, size in (("whole", 8), ("one", 5), ("other", 3))},
        slots=(
            Slot("v", 0, 8, "own", (Span(0, "whole", 0, 8),)),
            Slot("w", 0, 8, "own", (Span(0, "one", 0, 5), Span(5, "other", 0, 3))),
            Slot("r", 1, 8, "reads", (Span(0, "whole", 0, 8),)),
        ),
        shapes={"v": (8, 2), "w": (8, 2), "r": (2, 8)},
        index_coupled=(("whole",), ("one",), ("other",)),
    )


def test_no_layer_becomes_as_wide_as_one_that_is_cut_in_parts():
    found = [(one + other, whole) for whole, one, other in sizes_of(cut(), range(60)).tolist()]
    assert all(both != whole for both, whole in found)
    # Without the parts, each would be as wide as some are.
    assert {both for both, _ in found} & {whole for _, whole in found}


def test_layers_are_held_back_by_globs_and_by_the_trace():
    structure = stack((4, 4, 4), pinned=["a"]).structure
    found = held_back(structure, ["[ab]"])
    assert set(found) == {"a", "b"}
    assert found["a"] == structure.layers["a"].pin
    assert found["b"].reason == "excluded by your globs"


def test_removing_units_of_an_approximate_layer_is_inexact():
    structure = stack((4, 4)).structure
    layers = dict(structure.layers)
    layers["a"] = Layer("a", "lstm", 4, approximate=Site("layer_norm", ""))
    structure = Structure(layers, structure.slots, structure.shapes, structure.index_coupled)
    assert inexact(random_plan(structure, [["a"]]))
    assert not inexact(random_plan(structure, [["b"]]))
