from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reprune.core.layers import Extent, Pin, Site, Slot, Span
from tests.helpers.builders import stack

SPAN = st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(1, 4), st.integers(1, 3))


@given(st.lists(SPAN, max_size=4), st.sets(st.integers(0, 8)))
def test_positions_hold_the_units_asked_for(parts, units):
    spans, labels = [], []
    for gap, unit, count, each in parts:
        labels += [None] * gap
        spans.append(Span(len(labels), "a", unit, count, each))
        labels += [unit + place // each for place in range(count * each)]
    slot = Slot("w", 0, len(labels) + 1, "reads", tuple(spans))
    expected = [place for place, label in enumerate(labels) if label in units]
    assert slot.positions({"a": sorted(units), "b": [0]}).tolist() == expected
    assert slot.positions({}).tolist() == []


def test_extent_counts_gates_directions_and_repeats():
    spans = (Span(0, "a", 0, 3, 2), Span(7, "b", 0, 4), Span(11, "a", 0, 3, 2))
    extent = Slot("w", 0, 18, "reads", spans).extent({"a": 3, "b": 4})
    assert extent == Extent(2, (("a", 4), ("b", 1)))
    assert extent({"a": 3, "b": 4}) == 18
    assert extent({"a": 1, "b": 2}) == 8


def test_extent_of_an_axis_that_holds_some_units_only_is_fixed():
    extent = Slot("w", 0, 5, "reads", (Span(0, "a", 2, 4),)).extent({"a": 8})
    assert extent == Extent(5)


def test_slots_of_a_layer_by_role():
    structure = stack((4, 3)).structure
    assert [slot.tensor for slot in structure.slots_of("a", "own")] == ["a.w_ih", "a.w_hh", "a.bias"]
    assert [slot.tensor for slot in structure.slots_of("a", "reads")] == ["a.w_hh", "b.w_ih"]
    assert len(list(structure.slots_of("a"))) == 5
    assert list(structure.slots_of("nowhere")) == []


def test_prunable_layers_and_counts():
    structure = stack((4, 3), pinned=["b"]).structure
    assert structure.prunable == ("a",)
    assert structure.counts() == {"a": 4, "b": 3}


def test_a_pin_reads_as_a_sentence():
    assert str(Pin(Site("cat", "model.py:12"), "returned")) == "returned (cat at model.py:12)"
    assert str(Pin(Site("coupling", ""), "returned")) == "returned (coupling)"


def test_positions_of_every_gate():
    slot = next(stack((4,)).structure.slots_of("a", "own"))
    expected = np.concatenate([gate * 4 + np.array([1, 3]) for gate in range(4)])
    np.testing.assert_array_equal(slot.positions({"a": [1, 3]}), expected)
