"""States that are handed in and out, left out, or kept: the pruned model carries them at its own width."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reprune.torch
from reprune.core.layers import Structure
from reprune.core.plan import Plan
from reprune.torch.tracing.leaves import leaves, replaced
from tests.helpers.torch_oracle import assert_close, prepared, random_plans
from tests.helpers.torch_zoo.carried import STREAMS, Stream


def inputs(batch: int) -> Tensor:
    return torch.randn(batch, 5, dtype=torch.float64)


def doubled(states: Any) -> Any:
    return replaced(states, lambda _, tensor: tensor.double())


def found(model: nn.Module, *given: Any) -> Structure:
    return reprune.torch.inspect(model, [given]).structure


def seeded(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    return prepared(kind().double(), train=False)


def check_stream(model: nn.Module, plan: Plan, states: tuple[Any, ...], batch: int) -> None:
    """Three steps, each on the states of the one before: the same answers, and states of the smaller width."""
    small, masked = reprune.torch.apply(model, plan), reprune.torch.mask(model, plan)
    ours, theirs = copy.deepcopy(states), copy.deepcopy(states)
    for step in range(3):
        x = inputs(batch)
        (y, *ours), (expected, *theirs) = small(x, *ours), masked(x, *theirs)
        assert_close(y, expected, f"answer of step {step}")
    widths = [(one.numel(), two.numel()) for (_, one), (_, two) in zip(leaves(ours), leaves(theirs), strict=True)]
    assert widths
    assert all(one < two for one, two in widths), widths


@pytest.mark.parametrize("case", STREAMS.values(), ids=str)
def test_states_are_carried(case: Stream) -> None:
    model = seeded(case.build)
    structure = found(model, inputs(3), *doubled(case.states(3)))
    assert structure.prunable == case.layers, [str(layer.pin) for layer in structure.layers.values()]
    assert structure.states
    for plan in random_plans(structure, 2):
        check_stream(model, Plan.from_json(plan.to_json()), doubled(case.states(4)), 4)
