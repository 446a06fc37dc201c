"""Structures of models that have lost units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import nn

from reprune.core.layers import CarriedState, Port, Slot, Span
from reprune.core.plan import Plan
from reprune.core.training.shrink import shrunk, within
from reprune.torch import apply, trace
from tests.helpers.builders import stack

KEPT = {"a": [0, 3], "b": [1, 2, 4]}


@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_trace_of_the_smaller_model(bias: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 6, bidirectional=True, bias=bias)
            self.norm = nn.BatchNorm1d(12)
            self.head = nn.Linear(12, 2)

        def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out, state = self.lstm(x, (h, c))
            return self.head(self.norm(out[-1])), *state

    x, state = torch.randn(5, 2, 3), torch.randn(2, 2, 6)
    model = Net()
    structure = trace(model, (x, state, state))
    kept = {"lstm:l0": [0, 3, 4], "lstm:l0_reverse": [1, 2, 5]}
    found = shrunk(structure, kept)
    again = trace(apply(model, Plan(structure, kept)), (x, state[..., :3], state[..., :3]))
    assert found.layers == again.layers
    assert found.shapes == again.shapes
    assert set(found.slots) == set(again.slots)
    assert found.states == again.states
    assert len(found.states) == 2
    Plan(found, {name: list(range(3)) for name in kept})


def test_two_prunings_in_a_row() -> None:
    assert within({"a": [1, 4, 6], "b": [0, 2]}, {"a": [0, 2], "b": [1]}) == {"a": [1, 6], "b": [2]}


def held(spans: Iterable[Span], size: int) -> list[tuple[str, int] | None]:
    """What every position of an axis holds."""
    places: list[tuple[str, int] | None] = [None] * size
    for span in spans:
        assert span.units > 0
        for place in range(span.units * span.each):
            places[span.start + place] = (span.layer, span.unit + place // span.each)
    return places


def left(places: list[tuple[str, int] | None]) -> list[tuple[str, int] | None]:
    """The same without the units that go; those that stay are counted anew."""
    stay = (place for place in places if place is None or place[1] in KEPT[place[0]])
    return [place and (place[0], KEPT[place[0]].index(place[1])) for place in stay]


def test_every_position_holds_the_unit_that_it_held() -> None:
    """Some units of a layer, several positions for each, a run that goes altogether, positions that hold none."""
    one = (Span(1, "a", 2, 2, 3), Span(7, "b", 0, 4, 2), Span(16, "a", 1, 2), Span(18, "b", 2, 3))
    other = (Span(0, "a", 1, 1, 7), Span(7, "b", 1, 5), Span(12, "b", 0, 2, 2), Span(18, "a", 0, 3))
    given, kept = Port(("h",), 1, 22, (one,)), Port(("net", "h"), 1, 22, (other, other), 0)
    structure = replace(
        stack((4, 6)).structure,
        slots=(Slot("w", 1, 22, "reads", one), Slot("w", 0, 22, "own", other)),
        shapes={"w": (22, 22), "free": (5,)},
        states=(CarriedState(given, None), CarriedState(None, kept)),
        kept_states=(kept,),
    )
    found = shrunk(structure, KEPT)
    assert found.shapes == {"w": (found.slots[1].size, found.slots[0].size), "free": (5,)}
    assert found.counts() == {"a": 2, "b": 3}
    for slot, spans in zip(found.slots, (one, other), strict=True):
        assert held(slot.spans, slot.size) == left(held(spans, 22))
    assert (found.states[0].returned, found.states[1].given) == (None, None)
    assert found.states[0].given == replace(given, size=found.slots[0].size, pieces=(found.slots[0].spans,))
    small = replace(kept, size=found.slots[1].size, pieces=(found.slots[1].spans,) * 2)
    assert (found.states[1].returned, found.kept_states) == (small, (small,))
