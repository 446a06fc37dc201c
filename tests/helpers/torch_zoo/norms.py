"""Normalisations, dropout and affine parameters on units."""

from __future__ import annotations

import torch
from torch import nn

from tests.helpers.torch_zoo.case import case


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.second = nn.LSTM(5, 8, batch_first=True), nn.GRU(8, 7, batch_first=True)
        self.out = nn.Linear(7, 3)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.second(self.between(self.lstm(x)[0]))[0])


@case()
class BatchNormFlattened(Normed):
    """DeepSpeech's sequence-wise normalisation: `view(T * B, H)`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.norm.running_mean.normal_()

    def between(self, h: torch.Tensor) -> torch.Tensor:
        b, t = h.size(0), h.size(1)
        return self.norm(h.reshape(b * t, -1)).view(b, t, -1)


@case()
class BatchNormChannels(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.norm(h.transpose(1, 2)).transpose(1, 2)


@case(approximate=True)
class LayerNormed(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.norm(h)


@case(approximate=True)
class GroupNormWhole(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 8)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.norm(h.transpose(1, 2)).transpose(1, 2)


@case(pins={"lstm:l0": "into 2 groups"})
class GroupNormParts(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.norm(h.transpose(1, 2)).transpose(1, 2)


@case()
class InstanceNormed(Normed):
    """Statistics over time, one channel at a time: exact."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(8, affine=True)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.norm(h.transpose(1, 2)).transpose(1, 2)


@case(approximate=True)
class RootMeanSquare(Normed):
    """`nn.RMSNorm`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(8)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.norm(h)


@case(approximate=True)
class LayerNormWritten(Normed):
    """A layer normalisation written out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def between(self, h: torch.Tensor) -> torch.Tensor:
        mean, variance = h.mean(-1, keepdim=True), h.var(-1, keepdim=True, unbiased=False)
        return self.gain * (h - mean) / torch.sqrt(variance + 1e-5) + self.shift


@case()
class Affine(Normed):
    """A gain, a shift, a PReLU and a fixed mask, one value per unit."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(1, 1, 8))
        self.prelu = nn.PReLU(8)
        self.register_buffer("mask", torch.rand(8))

    def between(self, h: torch.Tensor) -> torch.Tensor:
        h = self.prelu((h * self.gain + self.shift).transpose(1, 2)).transpose(1, 2)
        return h * self.mask


@case()
class LockedDropout(Normed):
    """One dropout mask for all steps."""

    p = 0.4

    def between(self, h: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p:
            return h
        mask = h.new_empty(h.size(0), 1, h.size(2), requires_grad=False).bernoulli_(1 - self.p)
        return mask.div_(1 - self.p).expand_as(h) * h


@case()
class SpatialDropout(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.alpha = nn.Dropout2d(0.3), nn.AlphaDropout(0.2)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.alpha(self.drop(h.permute(0, 2, 1).unsqueeze(3)).squeeze(3).permute(0, 2, 1))


@case()
class Activations(Normed):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        h = nn.functional.gelu(nn.functional.leaky_relu(h, 0.1)).clamp(-0.9, 0.9)
        return torch.where(h > 0, torch.log1p(h), nn.functional.elu(h)) * 2 - 1 / (2 + h.abs())
