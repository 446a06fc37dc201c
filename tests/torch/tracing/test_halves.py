"""Layers that code cuts into parts where a size says: each part is a layer of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import reprune.torch
from reprune.core.layers import Structure
from tests.helpers.torch_oracle import assert_close, check_oracle, random_plans

pytestmark = pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")
PARTS = ("rnn:l0:0-7", "rnn:l0:8-15")
Cut = Callable[["Halves", Tensor], tuple[Tensor, ...]]


class Halves(nn.Module):
    """One GRU, of which two readers have a half each."""

    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self.cut, self.hidden, self.half = cut, 16, 8
        self.rnn, self.a, self.b = nn.GRU(5, 16, batch_first=True), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cut(self, self.rnn(x)[0])
        return self.a(torch.relu(a)) + self.b(b)


def frames(batch: int = 4) -> Tensor:
    return torch.randn(batch, 6, 5, dtype=torch.float64)


def inspected(net: nn.Module) -> Structure:
    torch.manual_seed(0)
    return reprune.torch.inspect(net.double(), [frames()]).structure


EQUAL: dict[str, Cut] = {
    "split by an attribute": lambda n, h: h.split(n.half, dim=-1),
    "split by half an attribute": lambda n, h: torch.split(h, n.hidden // 2, dim=2),
    "split by half a length": lambda n, h: h.split(h.size(-1) // 2, dim=-1),
    "split by two sizes": lambda n, h: h.split([n.half, n.half], -1),
    "chunk": lambda n, h: h.chunk(2, -1),
}
FREE: dict[str, Cut] = {
    "slices": lambda n, h: (h[..., : n.half], h[:, :, n.half :]),
    "slices by a length": lambda n, h: (h[..., : n.a.in_features], h[..., -n.b.in_features :]),
}


@pytest.mark.parametrize(("cut", "equal"), [*((c, True) for c in EQUAL.values()), *((c, False) for c in FREE.values())],
                         ids=[*EQUAL, *FREE])  # fmt: skip
def test_each_half_loses_units_of_its_own(cut: Cut, equal: bool) -> None:
    net = Halves(cut)
    structure = inspected(net)
    assert structure.prunable == PARTS, structure.layers
    assert structure.count_coupled == ((PARTS,) if equal else ())
    for plan in random_plans(structure, 3):
        check_oracle(net, plan, frames())
        assert plan.kept[PARTS[0]] != plan.kept[PARTS[1]]
    small = reprune.torch.prune(net, [frames(), frames()], 0.5).model
    assert small.rnn.hidden_size == 8


@pytest.mark.parametrize(
    "gate", [lambda n, h: (F.glu(h, -1),) * 2, lambda n, h: (h.chunk(2, -1)[0] * h.chunk(2, -1)[1],) * 2]
)
def test_a_half_that_gates_the_other_goes_with_it(gate: Cut) -> None:
    net = Halves(gate)
    structure = inspected(net)
    assert structure.prunable == PARTS
    assert structure.index_coupled == (PARTS,)
    for plan in random_plans(structure, 2):
        check_oracle(net, plan, frames())


def test_a_place_written_as_a_number_pins() -> None:
    structure = inspected(Halves(lambda n, h: (h[..., :8], h[..., 8:])))
    pin = structure.layers["rnn:l0"].pin
    assert pin is not None
    assert "taken by their position" in pin.reason


class Dual(nn.Module):
    """One step of a cell written out, whose halves read inputs and make outputs of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.split_size = 16, 8
        self.state = nn.Linear(16, 48, bias=False)
        self.coarse, self.fine = nn.Linear(2, 24, bias=False), nn.Linear(3, 24, bias=False)
        self.bias = nn.ParameterList([nn.Parameter(torch.randn(16)) for _ in range(3)])
        self.out = nn.ModuleList([nn.Linear(8, 3) for _ in range(2)])

    def forward(self, x: Tensor, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = zip(
            torch.split(self.coarse(x), self.split_size, dim=1),
            torch.split(self.fine(torch.cat([x, y], 1)), self.split_size, dim=1),
            strict=True,
        )
        u, r, e = (torch.cat(pair, 1) + bias for pair, bias in zip(parts, self.bias, strict=True))
        of_u, of_r, of_e = torch.split(self.state(h), self.hidden_size, dim=1)
        u, r = torch.sigmoid(of_u + u), torch.sigmoid(of_r + r)
        h = u * h + (1 - u) * torch.tanh(r * of_e + e)
        coarse, fine = torch.split(h, self.split_size, dim=1)
        return self.out[0](coarse), self.out[1](fine), h


def test_a_written_cell_of_two_halves_carries_its_state() -> None:
    torch.manual_seed(0)
    net = Dual().double()
    batch = [torch.randn(4, width, dtype=torch.float64) for width in (2, 16, 1)]
    structure = reprune.torch.inspect(net, [tuple(batch)]).structure
    assert structure.prunable == (":l0:0-7", ":l0:8-15")
    assert structure.count_coupled == (structure.prunable,)
    for plan in random_plans(structure, 2):
        small, masked = reprune.torch.apply(net, plan), reprune.torch.mask(net, plan)
        ours = theirs = torch.zeros(3, 16, dtype=torch.float64)
        for _ in range(3):
            x, y = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 1, dtype=torch.float64)
            (a, b, ours), (c, d, theirs) = small(x, ours, y), masked(x, theirs, y)
            assert_close(a, c, "coarse")
            assert_close(b, d, "fine")
        assert ours.shape[1] == small.hidden_size == 2 * small.split_size < 16
