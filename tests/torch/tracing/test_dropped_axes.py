"""Code that drops axes of length one: a layer of a single unit would lose the axis of its units."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reprune.torch
from reprune.core.errors import PlanError
from tests.helpers.torch_oracle import check_oracle, random_plans

pytestmark = pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")


class Imputer(nn.Module):
    """A cell feeds a layer, whose last state is squeezed; `dim` says which axes may go."""

    def __init__(self, dim: int | None) -> None:
        super().__init__()
        self.dim, self.cell, self.rnn = dim, nn.LSTMCell(5, 6), nn.LSTM(5, 6, batch_first=True)
        self.fill, self.out = nn.Linear(6, 5), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        state, filled = None, []
        for frame in x.unbind(1):
            state = self.cell(frame, state)
            filled.append(self.fill(state[0]))
        h = self.rnn(torch.stack(filled, 1))[1][0]
        return self.out(h.squeeze() if self.dim is None else h[0].squeeze(self.dim))


def frames(sequences: int = 8) -> Tensor:
    return torch.randn(sequences, 7, 5, dtype=torch.float64)


@pytest.mark.parametrize("dim", [None, -1, 1])
@pytest.mark.parametrize("method", ["magnitude", "reconstruct"])
def test_two_units_stay(dim: int | None, method: str) -> None:
    torch.manual_seed(0)
    net = Imputer(dim).double()
    found = reprune.torch.inspect(net, [frames()]).structure
    assert {name: layer.least for name, layer in found.layers.items()} == {"cell:l0": 1, "rnn:l0": 2}
    result = reprune.torch.prune(net, [frames(), frames()], 0.9, method=method)
    assert result.plan.counts() == {"cell:l0": 1, "rnn:l0": 2}
    for plan in [result.plan, *random_plans(found, 2)]:
        check_oracle(net, plan, frames(4))


def test_a_plan_of_one_unit_is_refused() -> None:
    net = Imputer(None).double()
    plan = reprune.torch.plan(net, [frames()], 0.5, method="magnitude")
    with pytest.raises(PlanError, match="drops axes of length one"):
        plan.with_kept({"rnn:l0": [3]})


def test_an_axis_of_other_things_may_go() -> None:
    net = Imputer(0).double()
    assert reprune.torch.inspect(net, [frames()]).structure.layers["rnn:l0"].least == 1
