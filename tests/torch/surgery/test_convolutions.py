"""Sizes of a convolution of which channels or whole groups are gone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reprune.torch.surgery.apply import _convolution


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
def test_groups_of_unequal_inputs_and_outputs(kind: type[nn.Conv1d]) -> None:
    """Two of four groups that read two channels and make three compute what they did."""
    torch.manual_seed(0)
    layer, x = kind(8, 12, 3, groups=4, bias=False), torch.randn(2, 8, 5)
    whole = layer(x)
    layer.weight = nn.Parameter(layer.weight[: len(layer.weight) // 2].detach())
    _convolution(layer)
    torch.testing.assert_close(layer(x[:, :4]), whole[:, :6])
    assert (layer.in_channels, layer.out_channels, layer.groups) == (4, 6, 2)


@pytest.mark.parametrize(("kind", "channels"), [(nn.Conv1d, (5, 12)), (nn.ConvTranspose1d, (8, 5))])
def test_the_second_axis_is_what_is_read_or_what_is_made(kind: type[nn.Conv1d], channels: tuple[int, int]) -> None:
    layer = kind(8, 12, 3)
    layer.weight = nn.Parameter(layer.weight[:, :5].detach())
    _convolution(layer)
    assert (layer.in_channels, layer.out_channels) == channels
