"""Structures of models that have lost units."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reprune.core.plan import Plan
from reprune.core.training.shrink import shrunk, within
from reprune.torch import apply, trace


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
