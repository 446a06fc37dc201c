"""Attention: whole heads, and pooling by learned weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.helpers.torch_zoo.case import tokens
from tests.helpers.width_zoo.case import case
from tests.helpers.width_zoo.convolutions import RETURNED

QKV = ("q:heads", "k:heads", "v:heads")


@case(
    {"words:columns": 12, "q:heads": 3, "k:heads": 3, "v:heads": 3, "merge:features": 12, "gru:l0": 5},
    tokens,
    pins=RETURNED,
    coupled=(QKV, ("words:columns", "merge:features")),
)
class HeadsByView(nn.Module):
    """Heads by `view`, with their number from an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.words = 3, nn.Embedding(11, 12)
        self.q, self.k, self.v, self.merge = (nn.Linear(12, 12) for _ in range(4))
        self.gru, self.out = nn.GRU(12, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        b, t, _ = x.shape
        q, k, v = (part(x).view(b, t, self.heads, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1)
        return self.out(self.gru(x + self.merge(context))[0])


@case(
    {
        "words:columns": 8,
        "q:heads": 2,
        "k:heads": 2,
        "v:heads": 2,
        "merge:features": 8,
        "up:features": 6,
        "down:features": 8,
    },
    tokens,
    pins=RETURNED,
    coupled=(QKV, ("words:columns", "merge:features", "down:features")),
)
class GroupedQueries(nn.Module):
    """Two queries for every key and value, rotary positions, and a gated linear unit."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.pairs, self.size = 4, 2, 4
        self.words = nn.Embedding(11, 8)
        self.q, self.k, self.v = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8)
        self.merge, self.up, self.down = nn.Linear(16, 8), nn.Linear(8, 12), nn.Linear(6, 8)
        self.out = nn.Linear(8, 4)

    def _rotated(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        b, t, _ = x.shape
        q = self._rotated(self.q(x).view(b, t, self.heads, self.size).transpose(1, 2))
        k, v = (part(x).view(b, t, self.pairs, self.size).transpose(1, 2) for part in (self.k, self.v))
        k, v = (part.repeat_interleave(2, 1) for part in (self._rotated(k), v))
        weights = (q @ k.transpose(-1, -2) / self.size**0.5).softmax(-1)
        x = x + self.merge((weights @ v).transpose(1, 2).reshape(b, t, -1))
        a, gate = self.up(x).chunk(2, -1)
        return self.out(x + self.down(a * F.silu(gate)))


@case(
    {"words:columns": 8, "attention:heads": 4, "attention.out_proj:features": 8, "lstm:l0": 5},
    tokens,
    pins=RETURNED,
)
class ModuleAttention(nn.Module):
    """PyTorch's own module loses heads and features."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.attention = nn.Embedding(11, 8), nn.MultiheadAttention(8, 4, batch_first=True)
        self.lstm, self.out = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.out(self.lstm(x)[0])


@case({"conv:channels": 6, "score.0:features": 4, "hidden:features": 7}, pins=RETURNED)
class AttentionPooling(nn.Module):
    """A weighted mean over time of convolution channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.score = (
            nn.Conv1d(5, 6, 3, padding=1),
            nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)),
        )
        self.hidden, self.out = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        pooled = (self.score(x).softmax(1) * x).sum(1)
        return self.out(F.relu(self.hidden(pooled)))
