"""Cells written out with layers: a state that goes round through any number of weights; what is no cell."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reprune.torch
from reprune.core.errors import UnsupportedModelError
from reprune.core.layers import Structure
from tests.helpers.torch_oracle import check_all_lose, check_oracle


def frames(steps: int = 6) -> torch.Tensor:
    return torch.randn(4, steps, 5, dtype=torch.float64)


def exact(model: nn.Module, layers: dict[str, int]) -> Structure:
    return check_all_lose(model, layers, frames, longer=8)


class Projected(nn.Module):
    """LSTMP written out: the state that goes round is a projection of the memory's."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.r, self.project = nn.Linear(5, 48), nn.Linear(8, 48, bias=False), nn.Linear(12, 8, bias=False)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c = x.new_zeros(x.size(0), self.r.in_features), x.new_zeros(x.size(0), self.project.in_features)
        for step in x.unbind(1):
            i, f, g, o = (self.x(step) + self.r(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = self.project(o.sigmoid() * c.tanh())
        return self.out(h)


class MemoryThroughWeight(nn.Module):
    """The memory reaches the state through a weight; one layer makes the gates of both."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.x, self.h = 8, nn.Linear(5, 32, bias=False), nn.Linear(8, 32, bias=False)
        self.last, self.out = nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c = x.new_zeros(x.size(0), self.n), x.new_zeros(x.size(0), self.n)
        for step in x.unbind(1):
            i, f, g, o = torch.split(self.x(step) + self.h(h), self.n, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * torch.tanh(self.last(c))
        return self.out(h)


class Einsum(nn.Module):
    """One head's matrices in one parameter, applied with einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.u, self.out = nn.Linear(5, 8), nn.Parameter(torch.randn(8, 8) / 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.size(0), self.u.size(0))
        for step in x.unbind(1):
            h = torch.tanh(self.x(step) + torch.einsum("bi,ij->bj", h, self.u))
        return self.out(h)


class Messages(nn.Module):
    """A graph network with a written update: neighbours are what comes from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.update, self.out = nn.Linear(5, 8), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near, h = (x @ x.transpose(1, 2)).softmax(-1), torch.tanh(self.start(x))
        for _ in range(3):
            h = torch.tanh(self.update(torch.cat([h, near @ h], -1)))
        return self.out(h)


def test_projected_state() -> None:
    assert not exact(Projected(), {":l0": 8, ":l1": 12}).count_coupled


def test_memory_through_a_weight() -> None:
    """One attribute is the size of both: they stay equal, and lose units of their own."""
    structure = exact(MemoryThroughWeight(), {":l0": 8, ":l1": 8})
    assert structure.count_coupled == ((":l0", ":l1"),)
    assert structure.index_coupled == ((":l0",), (":l1",))


@pytest.mark.parametrize("kind", [Projected, MemoryThroughWeight])
@pytest.mark.parametrize("method", ["reconstruct", "iss-gm+mean"])
def test_states_that_go_round_through_several_weights_are_observed(kind: type[nn.Module], method: str) -> None:
    torch.manual_seed(0)
    model = kind().double()
    plan = reprune.torch.plan(model, [frames(8) for _ in range(8)], 0.5, method=method)
    assert sum(plan.counts().values()) == sum(layer.units for layer in plan.structure.layers.values()) // 2
    check_oracle(model, plan, frames())


def test_einsum() -> None:
    exact(Einsum(), {":l0": 8})


def test_messages() -> None:
    exact(Messages(), {":l0": 8})


class Highway(nn.Module):
    """Highway layers before an LSTM: shared by two inputs, or applied to one again and again."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times, self.h, self.g = times, nn.Linear(12, 12), nn.Linear(12, 12)
        self.features, self.rnn, self.out = nn.Linear(5, 12), nn.LSTM(12, 10, batch_first=True), nn.Linear(10, 3)

    def highway(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            g = self.g(x).sigmoid()
            x = g * self.h(x).relu() + (1 - g) * x
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.highway(self.features(x)), self.highway(self.features(x.flip(1)))
        return self.out(self.rnn(one)[0] + self.rnn(two)[0])


@pytest.mark.parametrize("times", [1, 2, 3])
def test_layers_used_twice_are_no_cells(times: int) -> None:
    exact(Highway(times), {"rnn:l0": 10})


class Elementwise(nn.Module):
    """A recurrence without a matrix, as in SRU, QRNN or minGRU."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.out = nn.Linear(5, 16), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.size(0), 8)
        for step in self.make(x).unbind(1):
            z, f = step.chunk(2, -1)
            h = f.sigmoid() * h + (1 - f.sigmoid()) * z
        return self.out(h)


def test_a_recurrence_without_a_matrix_is_told_with_its_widths() -> None:
    with pytest.raises(UnsupportedModelError, match=r"from element to element.*make \(16\), out \(3\)"):
        reprune.torch.inspect(Elementwise().double(), [frames()])


def test_residual_layers_alone_hold_no_hidden_units() -> None:
    class Residual(Highway):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.highway(self.features(x))[..., :10])

    with pytest.raises(UnsupportedModelError, match="No recurrent layer ran"):
        reprune.torch.inspect(Residual(3).double(), [frames()])
