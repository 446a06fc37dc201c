"""Weights that are computed from parameters before they read units: all that they are made of loses columns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import reprune.torch
from reprune.core.layers import Structure
from tests.helpers.torch_oracle import check_oracle, random_plans

Make = Callable[["Net"], torch.Tensor]


class Net(nn.Module):
    """A GRU of 12 units, read by a weight (3, 12) that `make` computes."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.make, self.rnn = make, nn.GRU(5, 12, batch_first=True)
        self.a, self.b, self.c = (nn.Parameter(torch.randn(3, 12)) for _ in range(3))
        self.u, self.v = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 12))
        self.columns, self.rows = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(3, 1))
        self.register_buffer("mask", (torch.rand(3, 12) > 0.5).double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.rnn(x)[0], self.make(self))


def inspected(make: Make) -> tuple[Net, Structure]:
    torch.manual_seed(0)
    net = Net(make).double()
    return net, reprune.torch.inspect(net, [frames()]).structure


def frames() -> torch.Tensor:
    return torch.randn(6, 6, 5, dtype=torch.float64)


READ: dict[str, tuple[Make, set[str]]] = {
    "sum": (lambda n: n.a + n.b, {"a", "b"}),
    "difference of three": (lambda n: n.a + n.b - n.c, {"a", "b", "c"}),
    "mean of several": (lambda n: torch.stack([n.a, n.b]).mean(0), {"a", "b"}),
    "low rank": (lambda n: n.u @ n.v, {"v"}),
    "low-rank adapter": (lambda n: n.a + n.u @ n.v, {"a", "v"}),
    "product": (lambda n: n.a * n.b, {"a"}),
    "scaled columns": (lambda n: n.a * n.columns, {"a"}),
    "scaled rows": (lambda n: n.a * n.rows, {"a"}),
    "mask": (lambda n: n.a * n.mask, {"a"}),
    "offset of columns": (lambda n: n.a + n.columns, {"a", "columns"}),
    "unit rows": (lambda n: n.a / n.a.norm(dim=1, keepdim=True), {"a"}),
    "mask made in its shape": (lambda n: n.a * (torch.ones_like(n.a) * 0.5).sqrt(), {"a"}),
    "transposed": (lambda n: (n.a.t() + n.b.t()).t(), {"a", "b"}),
}


@pytest.mark.parametrize(("make", "names"), READ.values(), ids=READ)
@pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")
def test_read_by_all_parts(make: Make, names: set[str]) -> None:
    net, structure = inspected(make)
    assert structure.prunable == ("rnn:l0",), structure.layers["rnn:l0"].pin
    read = {slot.tensor for slot in structure.slots if slot.role == "reads" and not slot.tensor.startswith("rnn")}
    assert read == names
    assert not structure.layers["rnn:l0"].direct
    plan = reprune.torch.plan(net, [frames(), frames()], 0.5)
    for one in [*random_plans(structure, 2), plan]:
        check_oracle(net, one, frames())


@pytest.mark.parametrize(
    ("make", "reason"),
    [(lambda n: n.a.sigmoid(), "does not keep zeros"), (lambda n: n.a.tril(3), "computed in an unknown way")],
)
def test_a_weight_that_does_not_keep_zeros_is_pinned(make: Make, reason: str) -> None:
    """Zeros in its parameters would not silence it, or nothing is known of that."""
    _, structure = inspected(make)
    pin = structure.layers["rnn:l0"].pin
    assert pin is not None
    assert reason in pin.reason
    assert __file__ in pin.site.location
