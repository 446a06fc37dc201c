"""`Pruner(scope="all")`: every width of a model is selected while it trains, softly, gradually or at the end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reprune.core.errors import RecipeError, RepruneError
from reprune.core.plan import Plan
from reprune.torch import Pruner, mask
from reprune.torch.surgery.expand import expand
from tests.helpers.torch_oracle import assert_close


class Net(nn.Module):
    """Two convolutions that are added up and normalised, a GRU, a gated linear unit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(3, 8, 1)
        self.norm, self.gru = nn.BatchNorm1d(8), nn.GRU(8, 6, batch_first=True)
        self.up, self.gate, self.down = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.relu(self.first(x) + self.second(x))).transpose(1, 2)
        h = self.gru(x)[0]
        out: Tensor = self.down(torch.sigmoid(self.gate(h)) * self.up(h))
        return out


UNITS = {"first:channels": 8, "second:channels": 8, "gru:l0": 6, "up:features": 10, "gate:features": 10}


def trained(model: nn.Module, steps: int = 6, **options: Any) -> Pruner:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    example = torch.randn(2, 3, 7, dtype=torch.float64)
    pruner = Pruner(model, example, scope="all", optimizer=optimizer, total_steps=6, **options)
    for step in range(steps):
        x = torch.randn(5, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x[:, :2].transpose(1, 2)).square().mean() + pruner.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.step()
    return pruner


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


@pytest.mark.parametrize("schedule", ["soft:2", "fractional:2", "gradual:2", "after"])
@pytest.mark.parametrize("method", ["iss-gm+reconstruct", "pfa-en", "iss-group-lasso", "neuron-selection"])
def test_ends_in_a_smaller_model_that_equals_the_masked_one(schedule: str, method: str) -> None:
    model = net()
    pruner = trained(model, schedule=schedule, method=method, ratio=0.5)
    small = pruner.finish().eval()
    assert pruner.plan is not None
    plan = pruner.plan
    assert {name: layer.units for name, layer in plan.structure.layers.items() if layer.pin is None} == UNITS
    counts = plan.counts()
    assert sum(UNITS.values()) / 2 - 2 < sum(counts[name] for name in UNITS) <= sum(UNITS.values()) / 2
    assert small.first.out_channels == small.norm.num_features == small.gru.input_size == counts["first:channels"]
    assert (small.gate.out_features, small.down.in_features) == (counts["gate:features"], counts["up:features"])
    if schedule.startswith("gradual"):
        # The trained model has become the small one; grown again, and masked, it computes the same.
        model = expand(net(), small, plan)
        plan = Plan(plan.structure, plan.kept)
    x = torch.randn(4, 3, 9, dtype=torch.float64)
    assert_close(small(x), mask(model.eval(), plan)(x), "output")


def test_silenced_units_of_every_width_are_zero_and_have_a_gradient() -> None:
    model = net()
    pruner = trained(model, 2, schedule="soft:2", method="magnitude", ratio=0.5)
    assert pruner.plan is not None
    gone = pruner.plan.removed()
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    for name in ("first", "second"):
        assert gone[f"{name}:channels"]
        assert not model.get_submodule(name)(x)[:, gone[f"{name}:channels"]].any()
    assert not model.up(torch.randn(3, 6, dtype=torch.float64))[:, gone["up:features"]].any()
    model(x).square().sum().backward()
    assert model.up.weight.grad is not None
    assert model.up.weight.grad[gone["up:features"]].any(1).all()


def test_gradual_takes_filters_and_their_moments_from_the_optimiser() -> None:
    model = net()
    weight, down = model.first, model.down
    pruner = trained(model, 4, schedule="gradual:4", method="magnitude", ratio=0.5)
    assert pruner.plan is not None
    left = pruner.plan.counts()["first:channels"]
    assert left < 8
    assert model.first is weight
    assert model.down is down
    assert model.first.weight.shape == (left, 3, 3)
    state = pruner.optimizers[0].state[model.first.weight]
    assert state["exp_avg"].shape == state["exp_avg_sq"].shape == (left, 3, 3)
    assert state["exp_avg_sq"].all()


def test_a_checkpoint_goes_on_only_with_the_same_scope() -> None:
    saved = trained(net(), 3, schedule="gradual:2", method="magnitude").state_dict()
    again = net()
    pruner = Pruner(again, torch.randn(2, 3, 7, dtype=torch.float64), method="magnitude", schedule="gradual:2",
                    scope="all")  # fmt: skip
    pruner.load_state_dict(copy.deepcopy(saved))
    assert again.first.out_channels == pruner.plan.counts()["first:channels"] < 8  # type: ignore[union-attr]
    other = Pruner(net(), torch.randn(2, 3, 7, dtype=torch.float64), method="magnitude", schedule="gradual:2")
    with pytest.raises(RecipeError, match="another scope="):
        other.load_state_dict(saved)


def test_says_which_scopes_there_are() -> None:
    with pytest.raises(RepruneError, match="not one of 'recurrent', 'all'"):
        Pruner(net(), scope="every")  # type: ignore[arg-type]
