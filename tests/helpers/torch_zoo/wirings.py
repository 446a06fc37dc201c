"""Sums, products, gates and concatenations between recurrent layers."""

from __future__ import annotations

import torch
from torch import nn

from tests.helpers.torch_zoo.case import case, frames


@case(coupled=(("layers.0:l0", "layers.1:l0", "layers.2:l0"),))
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.LSTM(5 if k == 0 else 8, 8, batch_first=True) for k in range(3)])
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for k, layer in enumerate(self.layers):
            h, _ = layer(x)
            x = h if k == 0 else x + h
        return self.out(x)


@case()
class ResidualToLinear(nn.Module):
    """A projection in front makes the stream; the units are added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gru, self.out = nn.Linear(5, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.out(x + self.gru(x)[0])


@case(pins={"gru:l0": "an input of the model"}, batch=lambda b, t: torch.randn(b, t, 8))
class ResidualToInput(nn.Module):
    """Units added to the input itself stay: nothing can take columns out of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x + self.gru(x)[0])


@case()
class Highway(nn.Module):
    """`t * H(x) + (1 - t) * x` around a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.transform, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        gate = torch.sigmoid(self.transform(x))
        return self.out(gate * self.lstm(x)[0] + (1 - gate) * x)


@case()
class SkipConcatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.GRU(5, 8, batch_first=True), nn.GRU(8 + 5, 7, batch_first=True)
        self.out = nn.Linear(5 + 8 + 7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, _ = self.one(x)
        second, _ = self.two(torch.cat([x, first], -1))
        return self.out(torch.cat([x, first, second], -1))


@case(coupled=(("rnn:l0", "rnn:l0_reverse"),))
class SummedDirectionsView(nn.Module):
    """DeepSpeech's sum of directions: `view(T, B, 2, -1).sum(2)`."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 8, bidirectional=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.rnn(x.transpose(0, 1))
        x = x.view(x.size(0), x.size(1), 2, -1).sum(2).view(x.size(0), x.size(1), -1)
        return self.out(x)


@case(coupled=(("rnn:l0", "rnn:l0_reverse"),))
class SummedDirectionsSlices(nn.Module):
    """The sum of directions by slices with the module's own size."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 8
        self.rnn = nn.LSTM(5, self.hidden_size, bidirectional=True, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self.rnn(x)
        return self.out(output[:, :, : self.hidden_size] + output[:, :, self.hidden_size :])


@case(equal=(("rnn:l0", "rnn:l0_reverse"),))
class FirstAndLastByDirection(nn.Module):
    """The forward direction's last step beside the backward direction's first one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 8, bidirectional=True, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self.rnn(x)
        ahead, back = output.chunk(2, -1)
        return self.out(torch.cat([ahead[:, -1], back[:, 0]], -1))


@case(coupled=(("left:l0", "right:l0"),))
class Multiplied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.LSTM(5, 8, batch_first=True), nn.GRU(5, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.left(x)[0] * self.right(x)[0])


@case()
class SelfGated(nn.Module):
    """`sigmoid(Linear(h)) * h`: the gate's rows go with the units."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gate, self.out = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.lstm(x)
        return self.out(torch.sigmoid(self.gate(h)) * h)


@case()
class GatedUnit(nn.Module):
    """`glu` over a projection of the units."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gate, self.out = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 12), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(nn.functional.glu(self.gate(self.lstm(x)[0]), -1))


@case(coupled=(("rnn:l0", "rnn:l0_reverse"),))
class GatedByHalves(nn.Module):
    """`glu` over the units themselves: one direction gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(5, 8, batch_first=True, bidirectional=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(nn.functional.glu(self.rnn(x)[0], -1))


@case(batch=lambda b, t: (frames(b, t), torch.rand(b, t)))
class Pooled(nn.Module):
    """Mean, maximum and weighted mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(5, 8, batch_first=True), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        h, _ = self.gru(x)
        weighted = (h * weight.unsqueeze(-1)).sum(1) / weight.sum(1, keepdim=True)
        pooled = nn.functional.adaptive_max_pool1d(h.transpose(1, 2), 1).squeeze(-1)
        return self.out(torch.cat([h.mean(1), h.max(dim=1).values, weighted, pooled], 1))


@case()
class Statistics(nn.Module):
    """Mean and standard deviation over time, as speaker models pool."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(5, 8, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.lstm(x)
        return self.out(torch.cat([h.mean(1), h.std(1)], 1))


@case(pins={"lstm:l0": "runs over its units"})
class SoftmaxOverUnits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(x)[0].softmax(-1))


@case()
class CosineOfPair(nn.Module):
    """A Siamese pair compared by cosine: sums over the units themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[1][0][-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.cosine_similarity(self.encode(x), self.encode(x.flip(1)), dim=1)


@case()
class DistanceOfPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.gru(x)[0][:, -1], self.gru(x.flip(1))[0][:, -1]
        return torch.exp(-torch.sum(torch.abs(one - two), 1))


@case()
class Normalised(nn.Module):
    """Embeddings of unit length before a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(nn.functional.normalize(self.gru(x)[0][:, -1], dim=1))


@case()
class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        self.weight, self.out = nn.Parameter(torch.randn(4, 8)), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.lstm(x)
        return self.out(torch.einsum("bth,kh->btk", h, self.weight))


@case()
class Bilinear(nn.Module):
    """`nn.Bilinear` between two recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.LSTM(5, 8, batch_first=True), nn.LSTM(5, 7, batch_first=True)
        self.out = nn.Bilinear(8, 7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.one(x)[0].contiguous(), self.two(x)[0].contiguous())


@case()
class BilinearWithInput(nn.Module):
    """`nn.Bilinear` between a recurrent layer and the input."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(5, 8, batch_first=True), nn.Bilinear(5, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x, self.lstm(x)[0].contiguous())


@case()
class DataDependent(nn.Module):
    """Python control flow that looks at the values, `.item()` included."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 8, batch_first=True)
        self.one, self.two = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.gru(x)
        if self.one(h).sum().item() < 1e9 and bool((self.two(h).abs() < 1e9).all()):
            return self.one(h)
        return self.two(h)


@case()
class PlainList(nn.Module):
    """Layers kept in a plain list beside the registered ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(5, 8, 2, batch_first=True), nn.LSTM(8, 7, batch_first=True)
        self.stack = [self.first, self.second]
        self.out = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.stack:
            x, _ = layer(x)
        return self.out(x)
