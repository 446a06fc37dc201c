"""LSTMs with a projection, whose components and units are pruned apart: which of them PyTorch's own module can hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reprune
from reprune.torch import RaggedLSTM
from reprune.torch.surgery.expand import expand


class Projected(nn.Module):
    """Two layers of eight units, projected to four components each."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(5, 8, 2, proj_size=4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(x)[0])


@pytest.mark.parametrize(
    ("units", "components", "kind"),
    [
        ((8, 8), (4, 4), nn.LSTM),
        ((5, 5), (4, 4), nn.LSTM),
        ((3, 3), (2, 2), nn.LSTM),
        ((4, 4), (4, 4), RaggedLSTM),  # As many components as units: PyTorch refuses that.
        ((3, 3), (4, 4), RaggedLSTM),
        ((1, 1), (1, 1), RaggedLSTM),
        ((5, 6), (4, 4), RaggedLSTM),
        ((5, 5), (2, 3), RaggedLSTM),
    ],
)
def test_a_projection_stays_plain_where_pytorch_has_one(
    units: tuple[int, int], components: tuple[int, int], kind: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    model, x = Projected().double().eval(), torch.randn(3, 6, 5, dtype=torch.float64)
    plan = reprune.plan(model, [x], 0.5, method="magnitude")
    assert not plan.structure.outside_states  # The module makes its zeros itself.
    kept = {f"lstm:l{layer}": range(count) for layer, count in enumerate(units)}
    plan = plan.with_kept(kept | {f"lstm:l{layer}:projection": range(count) for layer, count in enumerate(components)})
    small = reprune.apply(model, plan)
    assert type(small.lstm) is kind
    masked = reprune.mask(model, plan)
    torch.testing.assert_close(small(x), masked(x), rtol=0, atol=1e-12)
    assert torch.equal(masked.lstm.weight_ih_l0, model.lstm.weight_ih_l0)  # Units are made, and nothing reads them.
    torch.testing.assert_close(expand(Projected().double(), small, plan)(x), small(x), rtol=0, atol=1e-12)


class Handed(nn.Module):
    """An encoder whose last state is the projected state that a decoder starts from."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.out = nn.GRU(5, 4, batch_first=True), nn.Linear(4, 3)
        self.decoder = nn.LSTM(5, 8, proj_size=4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.decoder(x, (self.encoder(x)[1], x.new_ones(1, len(x), 8)))[0])


def test_a_state_that_is_handed_over_holds_components() -> None:
    structure = reprune.inspect(Handed().double(), [torch.randn(3, 6, 5, dtype=torch.float64)]).structure
    assert ("encoder:l0", "decoder:l0:projection") in structure.index_coupled
