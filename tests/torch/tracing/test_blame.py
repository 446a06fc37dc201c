"""A pin names the line that couples, not one that reads what was coupled before."""

from __future__ import annotations

import linecache

import pytest
import torch
from torch import nn

import reprune.torch


class Pair(nn.Module):
    def __init__(self, one: int = 8, two: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.GRU(5, one, batch_first=True), nn.GRU(5, two, batch_first=True)
        self.out = nn.Linear(one, 3)


class Reversed(Pair):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.a(x)[0], self.b(x)[0]
        both = a + b.flip(-1)
        other = b * 2
        return self.out(both) + self.out(other)


class Itself(Pair):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)[0]
        both = a * a.roll(1, -1)
        return self.out(both) + self.out(a) + self.b(x)[0].sum()


class Unequal(Pair):
    def __init__(self) -> None:
        super().__init__(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.a(x)[0], self.b(x)[0]], -1)
        half, _ = both.chunk(2, -1)
        return self.out(torch.cat([half, half[..., :1]], -1))


@pytest.mark.parametrize(
    ("kind", "layer", "line"),
    [
        (Reversed, "a:l0", "both = a + b.flip(-1)"),
        (Itself, "a:l0", "both = a * a.roll(1, -1)"),
    ],
)
def test_the_line_that_couples(kind: type[Pair], layer: str, line: str) -> None:
    torch.manual_seed(0)
    pin = reprune.torch.inspect(kind(), [torch.randn(4, 6, 5)]).structure.layers[layer].pin
    assert pin is not None
    file, _, number = pin.site.location.rpartition(":")
    assert linecache.getline(file, int(number)).strip() == line


def test_the_line_that_keeps_layers_in_step() -> None:
    pin = reprune.torch.inspect(Unequal(), [torch.randn(4, 6, 5)]).structure.layers["b:l0"].pin
    assert pin is not None
    file, _, number = pin.site.location.rpartition(":")
    assert linecache.getline(file, int(number)).strip() == "half, _ = both.chunk(2, -1)"
