"""Which weights a plan knows: those that a model answers by, and those that its training ended with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import reprune
import reprune.torch
from reprune.core.errors import PlanWarning

pytestmark = pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")


class Stream(nn.Module):
    """Normalises by running statistics, keeps its state and counts in buffers while it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.cell, self.head = nn.BatchNorm1d(3), nn.LSTMCell(3, 8), nn.Linear(8, 2)
        self.register_buffer("h", torch.zeros(1, 8))
        self.register_buffer("c", torch.zeros(1, 8))
        self.register_buffer("seconds", torch.zeros(()))
        self.register_buffer("scale", torch.ones(3))
        self.h: torch.Tensor
        self.c: torch.Tensor
        self.scale: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c = self.cell(self.norm(x) * self.scale, (self.h, self.c))
        self.h = h.detach()
        self.c.copy_(c.detach())
        self.seconds += 0.02
        return self.head(h)


def stream() -> Stream:
    torch.manual_seed(0)
    return Stream().eval()


def frames(count: int = 40) -> list[torch.Tensor]:
    return list(torch.randn(count, 1, 3, generator=torch.Generator().manual_seed(1)))


def test_what_a_model_writes_while_it_answers_is_not_what_it_answers_by() -> None:
    model = stream()
    plan = reprune.plan(model, frames(), 0.5)
    assert plan.corrects
    assert plan.structure.written == ("h", "c", "seconds")
    for x in frames(5):
        model(x)
    reprune.apply(model, reprune.Plan.from_json(plan.to_json()))


@pytest.mark.parametrize("write", [
    lambda model: model.norm.running_mean.add_(1),
    lambda model: model.norm.running_var.mul_(2),
    lambda model: model.scale.mul_(2),
    lambda model: model.norm.train()(torch.randn(4, 3)),
], ids=["mean", "variance", "constant", "a step of training"])  # fmt: skip
def test_running_statistics_are(write: Any) -> None:
    model = stream()
    plan = reprune.plan(model, frames(), 0.5)
    write(model)
    with pytest.raises(reprune.PlanError, match="other weights"):
        reprune.apply(model.eval(), plan)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize("schedule", ["after", "gradual:2"])
def test_a_plan_made_while_training_knows_what_training_ended_with(schedule: str) -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(16, 5, 3)
    start = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = reprune.torch.Pruner(model, x, ratio=0.5, schedule=schedule, optimizer=optimizer, total_steps=4)
    for _ in range(4):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        pruner.step()
    small = pruner.finish()
    assert pruner.plan is not None
    with pytest.warns(PlanWarning, match="other weights"):
        reprune.apply(start, pruner.plan)
    if schedule == "after":  # Otherwise nothing has these weights at the old size any more.
        torch.testing.assert_close(reprune.apply(model, pruner.plan)(x), small(x))


def test_threads_of_the_process_are_as_before() -> None:
    before = torch.get_num_threads()
    table = reprune.measure_latency(Net(), torch.randn(1, 2, 3), threads=before + 1)
    assert table.threads == before + 1
    assert torch.get_num_threads() == before
