"""Numbers of units, against what each slot says of its positions one by one."""

from __future__ import annotations

import numpy as np
import pytest

from reprune.core.layers import Layer, Slot, Span, Structure
from reprune.core.units import UnitIndex, shared_places
from tests.helpers.builders import stack

MODEL = stack((4, 3, 4, 2), index_coupled=[["a", "c"], ["b"], ["d"]], pinned=["b"])


def test_coupled_units_share_a_number_and_pinned_ones_have_none():
    index = UnitIndex(MODEL.structure)
    assert index.size == 6
    assert index.groups == {("a", "c"): (0, 4), ("d",): (4, 2)}
    numbers = {(name, unit): unit for name in "ac" for unit in range(4)} | {("d", unit): 4 + unit for unit in range(2)}
    for slot in MODEL.structure.slots:
        for place, number in enumerate(index.of(slot)):
            held = [
                key for key in numbers
                if place in slot.positions({key[0]: [key[1]]})
            ]  # fmt: skip
            assert number == (numbers[held[0]] if held else 6)


def test_a_group_with_a_pinned_layer_is_left_out():
    structure = stack((4, 4), index_coupled=[["a", "b"]], pinned=["b"]).structure
    assert UnitIndex(structure).groups == {}
    np.testing.assert_array_equal(UnitIndex(structure).kept({"a": [0]}), np.zeros(0, dtype=np.int64))


def test_runs_of_positions_and_positions_of_no_unit():
    slot = Slot("w", 1, 9, "reads", (Span(1, "a", 1, 2, 3), Span(8, "b", 0, 1)))
    structure = Structure(
        layers={"a": Layer("a", "conv", 3), "b": Layer("b", "lstm", 1)},
        slots=(slot,),
        shapes={"w": (2, 9)},
        index_coupled=(("a",), ("b",)),
    )
    assert UnitIndex(structure).of(slot).tolist() == [4, 1, 1, 1, 2, 2, 2, 4, 3]


def test_values_by_layer_and_what_is_kept():
    index = UnitIndex(MODEL.structure)
    values = np.arange(6) ** 2
    found = index.by_layer(values)
    assert {name: held.tolist() for name, held in found.items()} == {
        "a": [0, 1, 4, 9],
        "c": [0, 1, 4, 9],
        "d": [16, 25],
    }
    assert index.kept({"a": [1, 3], "c": [1, 3], "b": [0, 1, 2], "d": [1]}).tolist() == [1, 3, 5]


def test_axes_of_parameters_are_found():
    index, structure = UnitIndex(MODEL.structure), MODEL.structure
    found = index.axes(structure, [slot for slot in structure.slots if slot.tensor.startswith("d.")])
    assert {name: [axis for axis, _ in axes] for name, axes in found.items()} == {
        "d.w_ih": [0, 1], "d.w_hh": [0, 1], "d.bias": [0]
    }  # fmt: skip
    np.testing.assert_array_equal(found["d.w_ih"][1][1], [0, 1, 2, 3])
    buffered = Structure(
        structure.layers, structure.slots, structure.shapes, structure.index_coupled, buffers=("d.bias", "d.w_ih")
    )
    assert set(index.axes(buffered, buffered.slots)) == set(structure.shapes) - {"d.bias", "d.w_ih"}


@pytest.mark.parametrize(
    ("rows", "columns"),
    [([0, 1, 2, 0, 1, 2], [0, 1, 2]), ([0, 0, 3, 1, 1], [3, 1, 1, 0]), ([3, 3], [0, 1]), ([0, 1], [2, 3])],
)
def test_shared_places_are_where_both_axes_name_one_unit(rows, columns):
    found = shared_places([(0, np.array(rows)), (1, np.array(columns))], 3)
    expected = {(i, j) for i, row in enumerate(rows) for j, column in enumerate(columns) if row == column != 3}
    pairs = list(zip(*(places.tolist() for places in found), strict=True))
    assert len(pairs) == len(expected)
    assert set(pairs) == expected
