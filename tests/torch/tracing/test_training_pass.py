"""Branches that only run in training mode: the pruned model can be trained further, and costs as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reprune.torch
from reprune.torch.tracing.running.training_pass import training_mode, trains_otherwise
from tests.helpers.torch_oracle import check_oracle, random_plans


class Net(nn.Module):
    """A written cell; what is done to its state in training mode alone is for subclasses to say."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.w, self.u = 12, nn.Linear(5, 24), nn.Linear(12, 24, bias=False)
        self.out, self.extra = nn.Linear(12, 3), nn.Linear(12, 2)
        self.register_buffer("masks", (torch.rand(100, 12) > 0.5).double())

    def change(self, h: torch.Tensor) -> torch.Tensor:
        return h * self.masks[: len(h)] if self.training else h

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.size(0), self.h)
        for step in x.unbind(1):
            a, z = (self.w(step) + self.u(h)).chunk(2, 1)
            h = self.change(z.sigmoid() * h + (1 - z.sigmoid()) * torch.relu(a))
        return self.out(h)


class Auxiliary(Net):
    """A second head, and the units themselves, only while training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        self.kept: list[torch.Tensor] = []
        answer = super().forward(x)
        return (answer, self.extra(self.kept[-1]), self.kept[-1]) if self.training else answer

    def change(self, h: torch.Tensor) -> torch.Tensor:
        self.kept.append(h)
        return h


class Noise(Net):
    def change(self, h: torch.Tensor) -> torch.Tensor:
        return h + 0.1 * torch.randn(len(h), self.h, dtype=h.dtype) if self.training else h


def frames(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 6, 5, dtype=torch.float64)


@pytest.mark.parametrize("kind", [Net, Auxiliary, Noise])
def test_pruned_models_train(kind: type[Net]) -> None:
    torch.manual_seed(0)
    model = kind().double().eval()
    structure = reprune.torch.inspect(model, [frames()]).structure
    assert structure.prunable == (":l0",), structure.layers[":l0"].pin
    for plan in random_plans(structure, 2):
        check_oracle(model, plan, frames())
        small = reprune.torch.apply(model, plan).train()
        output = small(frames())
        output = output if isinstance(output, tuple) else (output,)
        sum(tensor.sum() for tensor in output).backward()
        assert small.u.weight.grad is not None


def test_masks_are_those_of_the_units_that_are_left() -> None:
    torch.manual_seed(0)
    model = Net().double()
    plan = random_plans(reprune.torch.inspect(model, [frames()]).structure, 1)[0]
    small, masked = reprune.torch.apply(model, plan), reprune.torch.mask(model, plan)
    x = frames()
    torch.testing.assert_close(small.train()(x), masked.train()(x))


class Written(Net):
    def change(self, h: torch.Tensor) -> torch.Tensor:
        return h * torch.ones(12, dtype=h.dtype) if self.training else h


def test_a_size_that_only_training_shows() -> None:
    pin = reprune.torch.inspect(Written().double(), [frames()]).structure.layers[":l0"].pin
    assert pin is not None
    assert "does not run with fewer units" in pin.reason
    assert "torch.ones(12" in pin.reason


def test_costs_are_those_of_evaluation() -> None:
    plain, with_branch = Net().double(), Auxiliary().double()
    plain.register_buffer("masks", None)
    found = [reprune.torch.inspect(model, [frames()]).structure for model in (plain, with_branch)]
    assert found[0].steps == found[1].steps
    heads = [sum(c.rows for c in structure.contractions) for structure in found]
    assert heads[0] == heads[1]


class Normalised(Net):
    """A batch of one cannot be normalised while training: what is known from evaluation stays."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)

    def change(self, h: torch.Tensor) -> torch.Tensor:
        return self.norm(h) if self.training else h


def test_a_model_that_does_not_train_on_the_example() -> None:
    assert reprune.torch.inspect(Normalised().double(), [frames(1)]).structure.prunable == (":l0",)


def test_modes_are_put_back_as_each_was() -> None:
    model = nn.Sequential(nn.Dropout().eval(), nn.Sequential(nn.Dropout()))
    before = [module.training for module in model.modules()]
    for training, arguments in ((True, ()), (False, (False,))):
        with training_mode(model, *arguments):
            assert {module.training for module in model.modules()} == {training}
        assert [module.training for module in model.modules()] == before == [True, False, True, True]


class AsksInside(nn.Module):
    """The question stands in a function within a method."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return [step * 2 if self.training else step for step in x.unbind(1) if (lambda: self.training)()][0]  # noqa: RUF015


class AsksElsewhere(nn.Module):
    """A method beside `forward`, in a class that others derive from."""

    def helper(self) -> bool:
        return self.training


def test_only_code_that_asks_is_run_twice() -> None:
    assert trains_otherwise(AsksInside())
    assert trains_otherwise(nn.Sequential(type("Derived", (AsksElsewhere,), {})()))
    assert trains_otherwise(Net())
    assert not trains_otherwise(nn.Sequential(nn.LSTM(5, 8), nn.Dropout()))
