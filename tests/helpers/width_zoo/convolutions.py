"""Convolutions before, after and beside recurrent layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.helpers.width_zoo.case import case

RETURNED = {"out:features": "part of what the model returns"}


def pictures(sequences: int, steps: int) -> Tensor:
    """Random spectrograms (sequences, 1, 8, steps)."""
    return torch.randn(sequences, 1, 8, steps)


@case(
    {"features.0:channels": 4, "features.4:channels": 6, "lstm:l0": 5, "lstm:l0_reverse": 5, "between:features": 7},
    pictures,
    pins=RETURNED,
)
class Crnn(nn.Module):
    """Convolutions with normalisation and pooling, whose channels and bands become the features of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d((2, 1)),
            nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ELU(),
        )  # fmt: skip
        self.lstm = nn.LSTM(6 * 4, 5, bidirectional=True)
        self.between, self.out = nn.Linear(10, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).flatten(1, 2).permute(2, 0, 1)
        return self.out(F.gelu(self.between(self.lstm(x)[0])))


@case(
    {"stem:channels": 6, "block.0:channels": 4, "block.2:channels": 6, "gru:l0": 4},
    pins=RETURNED,
    coupled=(("stem:channels", "block.2:channels"),),
)
class TemporalConvolutions(nn.Module):
    """A residual stack of dilated convolutions over time, then a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(5, 6, 3, padding=1)
        self.block = nn.Sequential(nn.Conv1d(6, 4, 3, padding=2, dilation=2), nn.PReLU(4), nn.Conv1d(4, 6, 1))
        self.gru, self.out = nn.GRU(6, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.transpose(1, 2))
        x = F.relu(x + self.block(x))
        return self.out(self.gru(x.transpose(1, 2))[0])


@case(
    {
        "down:channels": 4,
        "deeper:channels": 6,
        "lstm:l0": 3,
        "lstm:l0_reverse": 3,
        "up:channels": 5,
        "join:channels": 4,
    },
    lambda b, t: torch.randn(b, 2, 4 * t),
    pins={"out:channels": "part of what the model returns"},
)
class Unet(nn.Module):
    """Down, a recurrent bottleneck, and up again with what was kept on the way beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deeper = nn.Conv1d(2, 4, 3, 2, 1), nn.Conv1d(4, 6, 3, 2, 1)
        self.lstm = nn.LSTM(6, 3, batch_first=True, bidirectional=True)
        self.up, self.join = nn.ConvTranspose1d(6, 5, 4, 2, 1), nn.Conv1d(9, 4, 3, padding=1)
        self.out = nn.ConvTranspose1d(4, 2, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = F.relu(self.down(x))
        deep = self.lstm(F.relu(self.deeper(kept)).transpose(1, 2))[0].transpose(1, 2)
        return self.out(F.relu(self.join(torch.cat([F.relu(self.up(deep)), kept], 1))))


@case({"stem.0:channels": 6, "stem.3:channels": 8, "gru:l0": 4}, pictures, pins=RETURNED)
class DepthwiseSeparable(nn.Module):
    """A depthwise convolution goes with the channels that it reads, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6),
            nn.Conv2d(6, 8, 1), nn.ReLU6(),
        )  # fmt: skip
        self.gru, self.out = nn.GRU(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(self.stem(x).mean(2).permute(2, 0, 1))[0])


@case(
    {"conv:channels": 6, "squeeze:features": 3, "excite:features": 6, "lstm:l0": 4},
    pictures,
    pins=RETURNED,
    coupled=(("conv:channels", "excite:features"),),
)
class SqueezeExcite(nn.Module):
    """Channels weighed by what a small network makes of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, 3), nn.Linear(3, 6)
        self.lstm, self.out = nn.LSTM(6 * 8, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        weights = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1).flatten(1)))))
        x = x * weights[:, :, None, None]
        b, c, f, t = x.shape
        return self.out(self.lstm(x.reshape(b, c * f, t).transpose(1, 2))[0][:, -1])


@case(
    {"one:channels": 4, "two:channels": 4, "lstm:l0": 3},
    lambda b, t: torch.randn(b, 3, t, 4),
    pins=RETURNED,
)
class Grouped(nn.Module):
    """Group normalisation and convolutions in groups keep whole groups."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.grouped, self.two = nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.Conv2d(12, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, (1, 2), stride=(1, 2), groups=4)
        self.lstm, self.out = nn.LSTM(4 * 8, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.norm(self.one(x)))))
        x = self.up(F.relu(self.two(x)))
        return self.out(self.lstm(x.transpose(1, 2).flatten(2))[0])


@case({"conv:channels": 3, "gru:l0": 4}, pictures, pins=RETURNED)
class PixelShuffle(nn.Module):
    """Channels that become places: four of them make one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.refine = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(3, 1, 3, padding=1)
        self.gru, self.out = nn.GRU(16, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.refine(F.pixel_shuffle(self.conv(x), 2))
        return self.out(self.gru(x.squeeze(1).transpose(1, 2))[0])


@case(
    {"one:channels": 4, "two:channels": 3, "both:features": 5},
    lambda b, t: torch.randn(b, 2, t, 6),
    pins=RETURNED,
    coupled=(),
)
class NoRecurrence(nn.Module):
    """A sum of a concatenation goes with the parts; no recurrent layer at all."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.sum = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 3, 1), nn.Conv2d(2, 7, 1)
        self.norm, self.both, self.out = nn.InstanceNorm2d(7, affine=True), nn.Linear(7 * 4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.sum(x) + torch.cat([self.one(x), self.two(x)], 1))
        x = F.adaptive_avg_pool2d(F.leaky_relu(x), (2, 2)).flatten(1)
        return self.out(F.silu(self.both(x)))


@case(
    {"one:channels": 6, "two:channels": 4, "conv3:channels": 5, "lstm:l0": 4},
    lambda b, t: torch.randn(b, 2, t, 6, 6),
    pins=RETURNED,
)
class Video(nn.Module):
    """Three-dimensional convolutions and pooling over frames."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.Conv3d(6, 4, 1)
        self.conv3 = nn.ConvTranspose3d(4, 5, 1)
        self.lstm, self.out = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm(self.one(x))), (1, 2, 2))
        x = F.avg_pool3d(self.conv3(F.relu(self.two(x))), (1, 3, 3))
        return self.out(self.lstm(x.flatten(2).transpose(1, 2))[0])


@case(
    {"first:channels": 4, "second:channels": 4, "lstm:l0": 3},
    lambda b, t: torch.randn(b, 3, t),
    pins=RETURNED,
)
class GatedConvolutions(nn.Module):
    """Half of the channels gates the other half; a quasi-recurrent layer's gates in slices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(4, 8, 1)
        self.lstm, self.out = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        x = self.second(torch.tanh(a) * torch.sigmoid(b))
        x = F.glu(x, 1)
        return self.out(self.lstm(x.transpose(1, 2))[0])


@case(
    {"words:columns": 6, "filters.0:channels": 3, "filters.1:channels": 4, "gru:l0": 4},
    lambda b, t: torch.randint(0, 9, (b, t, 7)),
    pins=RETURNED,
)
class CharacterWords(nn.Module):
    """Convolutions of several widths over the letters of every word, their maxima side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.filters = nn.ModuleList([nn.Conv1d(6, 3, 2), nn.Conv1d(6, 4, 3)])
        self.gru, self.out = nn.GRU(7, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, letters: Tensor) -> Tensor:
        b, t, n = letters.shape
        x = self.words(letters.view(b * t, n)).transpose(1, 2)
        x = torch.cat([F.relu(conv(x)).amax(-1) for conv in self.filters], -1)
        return self.out(self.gru(x.view(b, t, -1))[0])


@case({"encode:channels": 4, "gru:l0": 6, "middle:features": 4}, lambda b, t: torch.randn(b, 1, t, 9))
class SkipEnhancer(nn.Module):
    """A speech enhancer: its recurrent bottleneck makes as many channels as the encoder has, which go beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.out = nn.Conv2d(1, 4, (1, 3), (1, 2)), nn.ConvTranspose2d(8, 1, (1, 3), (1, 2))
        self.gru, self.middle = nn.GRU(16, 6, batch_first=True), nn.Linear(6, 16)

    def forward(self, x: Tensor) -> Tensor:
        encoded = F.elu(self.encode(x))
        b, c, t, f = encoded.shape
        y, _ = self.gru(encoded.transpose(1, 2).reshape(b, t, c * f))
        y = self.middle(y).view(b, t, c, f).transpose(1, 2)
        return torch.sigmoid(self.out(torch.cat([encoded, y], 1)))
