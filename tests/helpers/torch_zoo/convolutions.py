"""Convolutions around recurrent layers, and the reshapes between them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.helpers.torch_zoo.case import case, frames


@case(batch=lambda b, t: torch.randn(b, 1, 8, 4 * t))
class Crnn(nn.Module):
    """Text recognition: 2-D convolutions, columns as steps, two bidirectional layers with a layer between them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2, 2),
            nn.Conv2d(4, 6, (4, 1)), nn.ReLU(),
        )  # fmt: skip
        self.one, self.two = nn.LSTM(6, 8, bidirectional=True), nn.LSTM(7, 8, bidirectional=True)
        self.between, self.out = nn.Linear(16, 7), nn.Linear(16, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.features(image).squeeze(2).permute(2, 0, 1)
        x, _ = self.one(x)
        t, b, h = x.size()
        x = self.between(x.view(t * b, h)).view(t, b, -1)
        x, _ = self.two(x)
        return self.out(x).log_softmax(2)


@case()
class ConvolutionAfter(nn.Module):
    """Convolutions over time on the units as channels: plain, depthwise, transposed, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True, bidirectional=True)
        self.depthwise = nn.Conv1d(16, 16, 3, padding=1, groups=16)
        self.plain, self.transposed = nn.Conv1d(16, 6, 3, padding=1), nn.ConvTranspose1d(6, 4, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.lstm(x)[0].transpose(1, 2)
        return self.transposed(F.avg_pool1d(torch.relu(self.plain(self.depthwise(h))), 2, 1, 1))


@case()
class TransposedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.up = nn.GRU(5, 8, batch_first=True), nn.ConvTranspose1d(8, 3, 4, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.gru(x)[0].permute(0, 2, 1))


@case(pins={"gru:l0": "slides over its units"})
class ConvolutionOverUnits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.conv, self.out = nn.GRU(5, 8, batch_first=True), nn.Conv2d(1, 2, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(self.gru(x)[0].unsqueeze(1))
        return self.out(h.permute(0, 2, 1, 3).flatten(2))


@case(pins={"gru:l0": "in groups"})
class GroupedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.conv = nn.GRU(5, 8, batch_first=True), nn.Conv1d(8, 4, 3, padding=1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.gru(x)[0].transpose(1, 2))


@case()
class FlattenedTime(nn.Module):
    """All steps' units in one vector for one layer: positions of a unit are spread over its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(5, 8, batch_first=True), nn.Linear(3 * 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(x[:, :3])[0].flatten(1))


@case()
class FlattenedChannels(nn.Module):
    """Channels first, then flattened: neighbouring columns belong to one unit."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(5, 8, batch_first=True), nn.Linear(3 * 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.lstm(x[:, :3])
        return self.out(h.transpose(1, 2).reshape(x.size(0), -1))


@case(batch=lambda b, t: torch.randn(b, 6, 4, t))
class DualPath(nn.Module):
    """Dual-path separation: a layer within chunks, one across them, each with a projection and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.within, self.across = nn.LSTM(6, 8, batch_first=True, bidirectional=True), nn.GRU(6, 7, batch_first=True)
        self.one, self.two = nn.Linear(16, 6), nn.Linear(7, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, k, s = x.shape
        h = x.permute(0, 3, 2, 1).contiguous().view(b * s, k, n)
        h = self.one(self.within(h)[0].contiguous().view(b * s * k, -1)).view(b, s, k, n)
        x = x + h.permute(0, 3, 2, 1)
        h = x.permute(0, 2, 3, 1).contiguous().view(b * k, s, n)
        h = self.two(self.across(h)[0]).view(b, k, s, n).permute(0, 3, 1, 2)
        return x + h


@case()
class Framing(nn.Module):
    """Units cut into overlapping frames over time, masked, and added back."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.mask, self.out = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.lstm(F.pad(x, (0, 0, 2, 2)))
        cut = h.unfold(1, 4, 2).permute(0, 1, 3, 2)
        cut = cut * torch.sigmoid(self.mask(cut))
        return self.out(cut.flatten(1, 2))


@case(steps=False)
class FoldedBack(nn.Module):
    """`unfold` and `fold` over time with the units as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(5, 8, batch_first=True), nn.Conv1d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.gru(x)[0].transpose(1, 2).unsqueeze(-1)
        cut = F.unfold(h, (2, 1))
        return self.out(F.fold(cut, (h.size(2), 1), (2, 1)).squeeze(-1))


@case(batch=lambda b, t: torch.randn(b, t, 3, 6, 6))
class VideoFrames(nn.Module):
    """Frames through a convolution one by one, flattened, then recurrent."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.lstm, self.out = nn.LSTM(32, 8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t = x.shape[:2]
        features = torch.relu(self.conv(x.flatten(0, 1))).view(b, t, -1)
        return self.out(self.lstm(features)[0][:, -1, :])


@case()
class PyramidalReduction(nn.Module):
    """Listen, attend and spell: two neighbouring steps' units side by side halve the time."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.LSTM(5, 8, batch_first=True), nn.LSTM(16, 7, batch_first=True)
        self.out = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.one(x)
        h = h[:, : h.size(1) // 2 * 2]
        h = h.contiguous().view(h.size(0), h.size(1) // 2, h.size(2) * 2)
        return self.out(self.two(h)[0])


@case(batch=lambda b, t: torch.randn(b, 2, 6, t))
class ComplexPair(nn.Module):
    """Real and imaginary LSTMs: real*real - imag*imag, and real*imag + imag*real."""

    def __init__(self) -> None:
        super().__init__()
        self.real, self.imag = nn.LSTM(6, 8, batch_first=True), nn.LSTM(6, 8, batch_first=True)
        self.out = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        re, im = x[:, 0].transpose(1, 2), x[:, 1].transpose(1, 2)
        real = self.real(re)[0] - self.imag(im)[0]
        imag = self.imag(re)[0] + self.real(im)[0]
        return self.out(torch.cat([real, imag], -1))


@case(batch=frames, pins={"lstm:l0": "split into parts"})
class Heads(nn.Module):
    """Units reshaped into heads of a fixed number: parts of a layer mean something."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(5, 8, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.lstm(x)
        return self.out(h.view(h.size(0), h.size(1), 2, 4))
