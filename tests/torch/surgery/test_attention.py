"""The narrow form of `nn.MultiheadAttention` of a module that lost nothing: it answers as the module does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reprune.torch.surgery.attention import NarrowAttention


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("shape", [(5, 8), (1, 5, 8), (5, 1, 8), (3, 4, 8)], ids=str)
def test_any_order_of_axes(shape: tuple[int, ...], batch_first: bool) -> None:
    torch.manual_seed(0)
    source, x = nn.MultiheadAttention(8, 2, batch_first=batch_first).eval(), torch.randn(shape)
    for found, wanted in zip(NarrowAttention(source)(x, x, x), source(x, x, x), strict=True):
        torch.testing.assert_close(found, wanted)
