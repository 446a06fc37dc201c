from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprune.core.budget.cost import CostModel, tensor_extents
from reprune.core.errors import BudgetError
from reprune.core.layers import Contraction, Extent, Layer, Slot, Span, Structure
from tests.helpers.builders import stack

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(SIZES, SIZES, st.integers(1, 7), st.integers(1, 7), st.integers(1, 30))
def test_stacks_cost_what_the_textbook_says(units, kept, inputs, outputs, steps):
    model = stack(units, inputs=inputs, outputs=outputs, steps=steps)
    cost = CostModel(model.structure)
    before = model.structure.counts()
    after = {name: min(count, size) for (name, size), count in zip(before.items(), kept * 4, strict=False)}
    for case in (before, after):
        assert cost("units", case) == sum(case.values())
        assert cost("parameters", case) == model.parameters(case)
        assert cost("macs", case) == model.macs(case)


def test_one_layer_by_hand():
    cost = CostModel(stack((4, 3), inputs=5).structure)
    assert cost.layer_parameters("a", {"a": 4, "b": 3}) == 4 * 4 * (5 + 4 + 1)
    assert cost.layer_parameters("b", {"a": 2, "b": 3}) == 4 * 3 * (2 + 3 + 1)
    assert cost.layer_macs("a", {"a": 2, "b": 3}) == 4 * 2 * (5 + 2)
    assert cost.layer_macs("b", {"a": 2, "b": 1}) == 4 * 1 * (2 + 1)


def test_layers_without_a_recurrence_by_hand():
    """Convolutions cost their taps at every place of a time step; looking a row up costs nothing."""
    names = {"c": "convolution", "d": "convolution", "e": "embedding"}
    extents = {name: Extent(0, ((name, 1),)) for name in names}
    structure = Structure(
        layers={name: Layer(name, cell, 6) for name, cell in names.items()},
        slots=tuple(
            Slot(f"{name}.{tensor}", axis, 6, "own", (Span(0, name, 0, 6),))
            for name in names
            for tensor, axis in (("weight", name == "e"), ("bias", 0))
        ),
        shapes={"c.weight": (6, 5, 3), "d.weight": (6, 2, 7), "e.weight": (9, 6)}
        | {f"{name}.bias": (6,) for name in names},
        index_coupled=tuple((name,) for name in names),
        # Three taps at 20 places in 10 time steps, and at half of them a second time, the axes the other way round.
        contractions=(
            Contraction(3 * 20, (extents["c"], Extent(5))),
            Contraction(3 * 10, (Extent(5), extents["c"])),
            Contraction(100, (extents["e"], Extent(5))),
        ),
        steps=10,
    )
    cost, counts = CostModel(structure), {"c": 4, "d": 3, "e": 2}
    assert cost.layer_macs("c", counts) == 3 * (2 + 1) * 4 * 5
    assert cost.layer_macs("d", counts) == 3 * 2 * 7
    assert cost.layer_macs("e", counts) == 0
    assert [cost.layer_parameters(name, counts) for name in names] == [4 * 5 * 3 + 4, 3 * 2 * 7 + 3, 9 * 2 + 2]
    assert cost("macs", counts) == 3 * (2 + 1) * 4 * 5 + 100 * 2 * 5 / 10


def test_latency_has_to_be_measured():
    with pytest.raises(BudgetError, match="needs measured times"):
        CostModel(stack((4,)).structure)("latency", {"a": 4})


def test_pinned_layers_are_no_units_to_prune():
    assert CostModel(stack((4, 3), pinned=["b"]).structure)("units", {"a": 4, "b": 3}) == 4


def test_buffers_are_no_parameters():
    structure = stack((4,)).structure
    without = CostModel(structure)("parameters", {"a": 2}) - 4 * 2
    buffered = CostModel(replace(structure, buffers=("a.bias",)))
    assert buffered("parameters", {"a": 2}) == without


def test_extents_give_back_the_shapes():
    structure = stack((4, 3)).structure
    for name, axes in tensor_extents(structure).items():
        assert tuple(axis(structure.counts()) for axis in axes) == structure.shapes[name]
