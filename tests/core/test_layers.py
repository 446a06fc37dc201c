from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprune.core.errors import RepruneError
from reprune.core.layers import (
    Extent,
    Layer,
    Pin,
    Port,
    Site,
    SizeAttribute,
    Slot,
    Span,
    Structure,
    checked_scope,
    least_of,
    spans_of,
)
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
    # By unit, where each has as many positions as the others, and any.
    of_units = [[place for place, label in enumerate(labels) if label == unit] for unit in range(8)]
    alike = len({len(held) for held in of_units}) == 1 and of_units[0] != []
    found = slot.by_unit("a", 8)
    assert found is None if not alike else found.tolist() == of_units


def test_positions_of_every_unit():
    """Two layers side by side and again, in another order; several positions for each unit."""
    spans = (Span(1, "b", 0, 2), Span(3, "a", 1, 2, 2), Span(7, "a", 0, 1, 2), Span(10, "a", 0, 3), Span(13, "b", 0, 1))
    slot = Slot("w", 0, 14, "own", spans)
    assert slot.by_unit("a", 3).tolist() == [[7, 8, 10], [3, 4, 11], [5, 6, 12]]
    assert slot.by_unit("b", 2) is None  # Not all alike.
    assert slot.by_unit("a", 4) is None  # Not all.
    assert slot.by_unit("c", 1) is None
    assert Slot("w", 0, 3, "own", (Span(1, "a", 0, 1, 2),)).by_unit("a", 1).tolist() == [[1, 2]]
    assert Slot("w", 0, 2, "own", (Span(0, "a", 0, 2),)).by_unit("a", 2).tolist() == [[0], [1]]


@given(st.lists(st.sampled_from([None, *[(name, unit) for name in "ab" for unit in range(4)]]), max_size=14))
def test_spans_of_an_axis_say_what_each_position_holds(labels):
    spans = spans_of(labels)
    held = [None] * len(labels)
    for span in spans:
        for place in range(span.units * span.each):
            assert held[span.start + place] is None
            held[span.start + place] = (span.layer, span.unit + place // span.each)
    assert held == labels
    for one, other in pairwise(spans):
        # In order, and two that go on from each other would be one.
        assert one.start + one.units * one.each <= other.start
        follows = (one.start + one.units * one.each, one.layer, one.unit + one.units, one.each)
        assert follows != (other.start, other.layer, other.unit, other.each)


def test_states_of_several_layers():
    port = Port(("state", 0), 1, 6, ((Span(1, "a", 0, 4),), (Span(0, "b", 1, 2, 2), Span(4, "a", 2, 2))), 0)
    assert port.layers == ("a", "b")
    assert [held.tolist() for held in port.stay({"a": [1, 2], "b": [2]})] == [[0, 1, 4, 5], [0, 1, 5]]
    assert str(port) == "state.0"


def test_the_whole_of_a_part_and_what_must_stay():
    layers = {
        "a:0-1": Layer("a:0-1", "lstm", 2, part=("a", 0)),
        "b": Layer("b", "gru", 2, least=2),
        "c": Layer("c", "gru", 3),
    }
    structure = replace(stack((4,)).structure, layers=layers)
    assert [layer.whole for layer in layers.values()] == ["a", "b", "c"]
    assert [least_of(structure, names) for names in (["a:0-1"], ["a:0-1", "b"], ["b", "c"])] == [1, 2, 2]


def test_what_is_not_said():
    assert Layer("a", "lstm", 2) == Layer("a", "lstm", 2, None, None, False, None, 1)
    assert SizeAttribute("", (), Extent(1)) == SizeAttribute("", (), Extent(1), 1, 1)
    assert Structure({}, (), {}, ()) == Structure({}, (), {}, (), (), (), (), 1.0, 0)


def test_scopes():
    assert [checked_scope(scope) for scope in ("recurrent", "all")] == ["recurrent", "all"]
    with pytest.raises(RepruneError, match="scope='some' is not one of 'recurrent', 'all'"):
        checked_scope("some")


def test_extent_counts_gates_directions_and_repeats():
    spans = (Span(0, "a", 0, 3, 2), Span(7, "b", 0, 4), Span(11, "a", 0, 3, 2))
    extent = Slot("w", 0, 18, "reads", spans).extent({"a": 3, "b": 4})
    assert extent == Extent(2, (("a", 4), ("b", 1)))
    assert extent({"a": 3, "b": 4}) == 18
    assert extent({"a": 1, "b": 2}) == 8


def test_extent_of_an_axis_that_holds_some_units_only_is_fixed():
    extent = Slot("w", 0, 5, "reads", (Span(0, "a", 2, 4),)).extent({"a": 8})
    assert extent == Extent(5)
    assert Slot("w", 0, 3, "reads", (Span(0, "a", 0, 1, 2),)).extent({"a": 1}) == Extent(1, (("a", 2),))


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
