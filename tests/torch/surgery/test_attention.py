"""The narrow form of `nn.MultiheadAttention` of a module that lost nothing: it answers as the module does."""

from __future__ import annotations

from typing import Any

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


OPTIONS = {"plain": {}, "no biases": {"bias": False}, "a key more": {"add_bias_kv": True},
           "a zero": {"add_zero_attn": True}, "other keys": {"kdim": 5, "vdim": 7}}  # fmt: skip
DARK = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) > 0.6
DARK.fill_diagonal_(False)
PADDED = torch.tensor([[False] * 4, [False] * 3 + [True], [False] * 2 + [True] * 2])
CALLS = {
    "no mask": {},
    "mask": {"attn_mask": DARK},
    "added": {"attn_mask": torch.randn(4, 4)},
    "mask for each head": {"attn_mask": torch.stack([DARK, DARK.T] * 3)},
    "padding": {"key_padding_mask": PADDED},
    "both": {"attn_mask": DARK & ~torch.eye(4, dtype=torch.bool), "key_padding_mask": PADDED},
    "every head's weights": {"average_attn_weights": False},
    "no weights": {"need_weights": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_any_module_called_in_any_way(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    source = nn.MultiheadAttention(8, 2, batch_first=True, **options).eval()
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    narrow = NarrowAttention(source)
    query, key, value = (torch.randn(3, 4, size) for size in (8, options.get("kdim", 8), options.get("vdim", 8)))
    for call in CALLS.values():
        found, wanted = narrow(query, key, value, **call), source(query, key, value, **call)
        for one, other in zip(found, wanted, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other)
    alone = {"key_padding_mask": PADDED[1]}
    torch.testing.assert_close(narrow(query[0], key[0], value[0], **alone), source(query[0], key[0], value[0], **alone))


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
