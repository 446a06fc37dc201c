"""The narrow form of `nn.MultiheadAttention` of a module that lost nothing: it answers as the module does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reprune
from reprune.torch.surgery.attention import NarrowAttention


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("shape", [(5, 8), (1, 5, 8), (5, 1, 8), (3, 4, 8)], ids=str)
def test_any_order_of_axes(shape: tuple[int, ...], batch_first: bool) -> None:
    torch.manual_seed(0)
    source, x = nn.MultiheadAttention(8, 2, batch_first=batch_first).eval(), torch.randn(shape)
    for found, wanted in zip(NarrowAttention(source)(x, x, x), source(x, x, x), strict=True):
        torch.testing.assert_close(found, wanted)


class Attended(nn.Module):
    """Attention over an LSTM's responses, whose queries are read off another width than keys and values."""

    def __init__(self, heads: int, keys: int) -> None:
        super().__init__()
        self.lstm, self.other = nn.LSTM(3, 12, batch_first=True), nn.GRU(3, keys, batch_first=True)
        self.attention = nn.MultiheadAttention(12, heads, kdim=keys, vdim=keys, batch_first=True)
        self.out = nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, k = self.lstm(x)[0], self.other(x)[0]
        return self.out(self.attention(h, k, k, need_weights=False)[0])


# Three is how many of queries, keys and values stand side by side, two how many of keys and values.
@pytest.mark.parametrize(("heads", "keys"), [(2, 12), (3, 12), (2, 8), (3, 8)])
def test_heads_are_told_from_projections_side_by_side(heads: int, keys: int) -> None:
    torch.manual_seed(0)
    model, x = Attended(heads, keys).double().eval(), torch.randn(4, 5, 3, dtype=torch.float64)
    structure = reprune.inspect(model, [x], scope="all")
    found = {name: layer for name, layer in structure.layers.items() if name.endswith(":heads")}
    assert {(layer.units, layer.pin) for layer in found.values()} == {(heads, None)}
    plan = reprune.plan(model, [x], method="magnitude", scope="all", counts={"*:heads": heads - 1})
    small = reprune.apply(model, plan)
    torch.testing.assert_close(small(x), reprune.mask(model, plan)(x), rtol=0, atol=1e-12)
