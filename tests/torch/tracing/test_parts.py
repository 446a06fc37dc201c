"""Layers whose units are those of several others side by side: coupled part by part, at offsets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import reprune.torch
from reprune.core.layers import Structure
from reprune.core.plan import Plan
from tests.helpers.torch_oracle import check_all_lose, check_oracle, random_plans


def frames(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 6, 5, dtype=torch.float64)


class Bridge(nn.Module):
    """Both directions of an encoder, side by side, start a decoder of twice the width."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.encoder = nn.GRU(5, 8, layers, batch_first=True, bidirectional=True)
        self.decoder, self.out = nn.GRU(5, 16, layers, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, h = self.encoder(x)
        return self.out(self.decoder(x, torch.cat([h[0::2], h[1::2]], -1))[0])


class Pieces(Bridge):
    """The same, state by state, so that layers stay free."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, h = self.encoder(x)
        return self.out(self.decoder(x, torch.cat([h[0], h[1]], -1).unsqueeze(0))[0])


class CellBridge(nn.Module):
    """An LSTM cell that starts from both states of both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.cell = nn.LSTM(5, 8, batch_first=True, bidirectional=True), nn.LSTMCell(5, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (h, c) = self.encoder(x)
        state, found = (torch.cat([h[0], h[1]], -1), torch.cat([c[0], c[1]], -1)), []
        for step in x.unbind(1):
            state = self.cell(step, state)
            found.append(self.out(state[0]))
        return torch.stack(found, 1)


class Added(nn.Module):
    """Two layers of different sizes side by side are added to a wider one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.wide = (nn.LSTM(5, size, batch_first=True) for size in (8, 6, 14))
        self.out = nn.Linear(14, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.wide(x)[0] + torch.cat([self.a(x)[0], self.b(x)[0]], -1))


class Alternating(Added):
    """Units one by one in turn: out of order in so many parts that both stay."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        order = torch.arange(14).view(2, 7).t().reshape(-1)
        return self.out(self.wide(x)[0] + torch.cat([self.a(x)[0], self.b(x)[0]], -1)[..., order])


COUPLED: dict[type[nn.Module], list[tuple[str, ...]]] = {
    Pieces: [("encoder:l0", "decoder:l0:0-7"), ("encoder:l0_reverse", "decoder:l0:8-15")],
    CellBridge: [("encoder:l0", "cell:l0:0-7"), ("encoder:l0_reverse", "cell:l0:8-15")],
    Added: [("wide:l0:0-7", "a:l0"), ("wide:l0:8-13", "b:l0")],
}


def inspected(kind: type[nn.Module], *args: int) -> tuple[nn.Module, Structure]:
    torch.manual_seed(0)
    model = kind(*args).double()
    return model, reprune.torch.inspect(model, [frames()]).structure


@pytest.mark.parametrize("kind", COUPLED, ids=lambda kind: kind.__name__)
def test_parts_lose_the_units_of_their_partners(kind: type[nn.Module]) -> None:
    model, structure = inspected(kind)
    assert list(structure.index_coupled) == COUPLED[kind]
    assert structure.prunable == tuple(structure.layers)
    assert not structure.count_coupled
    for plan in random_plans(structure, 3):
        plan = Plan.from_json(plan.to_json())
        for one, other in COUPLED[kind]:
            assert plan.kept[one] == plan.kept[other]
        check_oracle(model, plan, frames())


@pytest.mark.parametrize("method", ["reconstruct", "iss-gm+mean", "magnitude"])
def test_budgets_count_parts_as_units(method: str) -> None:
    model, _ = inspected(Added)
    result = reprune.torch.prune(model, [frames(16) for _ in range(4)], 0.5, method=method)
    counts = result.plan.counts()
    assert sum(counts.values()) == 14
    assert result.model.wide.hidden_size == counts["wide:l0:0-7"] + counts["wide:l0:8-13"]
    check_oracle(model, result.plan, frames())


def test_responses_of_parts_are_those_of_the_layer() -> None:
    model, structure = inspected(Pieces)
    batches = [frames() for _ in range(3)]
    statistics = reprune.torch.observe(model, structure, batches)
    with torch.no_grad():
        h = [torch.cat([state[0], state[1]], -1)[None] for x in batches for state in [model.encoder(x)[1]]]
        rows = torch.cat([model.decoder(x, s)[0].reshape(-1, 16) for x, s in zip(batches, h, strict=True)]).numpy()
    for name, part in (("decoder:l0:0-7", rows[:, :8]), ("decoder:l0:8-15", rows[:, 8:])):
        np.testing.assert_allclose(statistics[name].mean, part.mean(0), rtol=1e-9)
        np.testing.assert_allclose(statistics[name].covariance, np.cov(part.T, bias=True), rtol=1e-8, atol=1e-12)


def test_stacked_states_of_several_layers() -> None:
    """All directions are stacked, so they stay equal; every layer of the decoder is cut at the same place."""
    model, structure = inspected(Bridge, 2)
    assert structure.prunable == tuple(structure.layers)
    assert set(structure.index_coupled) == {
        ("encoder:l0", "decoder:l0:0-7"), ("encoder:l0_reverse", "decoder:l0:8-15"),
        ("encoder:l1", "decoder:l1:0-7"), ("encoder:l1_reverse", "decoder:l1:8-15"),
    }  # fmt: skip
    for plan in random_plans(structure, 2):
        check_oracle(model, plan, frames())
        small = reprune.torch.apply(model, plan)
        assert isinstance(small.decoder, nn.GRU)
        assert small.decoder.hidden_size == 2 * small.encoder.hidden_size


def test_units_in_turn_are_pinned() -> None:
    _, structure = inspected(Alternating)
    assert structure.prunable == ()
    pin = structure.layers["wide:l0"].pin
    assert pin is not None
    assert "its units are coupled with those of" in pin.reason
    assert __file__ in pin.site.location


class LayersInTurn(nn.Module):
    """Final states of all layers, flattened so that the layers alternate: as DeepAR reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(5, 8, 3), nn.Linear(3 * 8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (h, _) = self.rnn(x.transpose(0, 1))
        return self.out(h.permute(1, 2, 0).reshape(len(x), -1))


def test_layers_that_alternate_on_an_axis_lose_the_same_units() -> None:
    names = {f"rnn:l{k}": 8 for k in range(3)}
    structure = check_all_lose(
        LayersInTurn(), names, lambda steps=4: torch.randn(3, steps, 5, dtype=torch.float64), longer=6
    )
    assert structure.index_coupled == (tuple(names),)
