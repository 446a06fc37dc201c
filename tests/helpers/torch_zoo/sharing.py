"""Tied weights, shared layers, weights that are computed."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from tests.helpers.torch_zoo.case import case, frames, tokens


@case(batch=tokens)
class TiedSoftmax(nn.Module):
    """The decoder's matrix is the embedding's: units, embedding columns and the first layer's inputs go together."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.lstm = nn.LSTM(8, 8, 2, batch_first=True)
        self.decoder = nn.Linear(8, 11)
        self.decoder.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.lstm(self.embedding(words))[0])


@case(batch=tokens)
class EmbeddingAsSoftmax(nn.Module):
    """Scores against all items of the embedding, by a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(11, 8, padding_idx=0)
        self.gru = nn.GRU(8, 8, batch_first=True)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        h, _ = self.gru(self.items(words))
        return torch.matmul(h[:, -1], self.items.weight.transpose(0, 1))


@case(batch=lambda b, t: (frames(b, t), frames(b, t)))
class Towers(nn.Module):
    """One layer for two inputs, compared by absolute difference and product."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True, bidirectional=True)
        self.out = nn.Linear(64, 3)

    def forward(self, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        a, b = self.lstm(one)[0].max(1)[0], self.lstm(two)[0].max(1)[0]
        return self.out(torch.cat([a, b, (a - b).abs(), a * b], 1))


@case()
class SamePlaces(nn.Module):
    """The same layer under two names, and run twice over its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.again, self.out = self.lstm, nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.again(self.lstm(self.first(x))[0])[0])


@case(batch=lambda b, t: (frames(b, t), frames(b, t + 1)))
class SharedConsumer(nn.Module):
    """Two layers read by the same weight must lose the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.LSTM(5, 8, batch_first=True), nn.GRU(5, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.out(self.one(a)[0]), self.out(self.two(b)[0])], 1)


@case()
class WeightComputed(nn.Module):
    """A consumer whose weight is the product of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        self.direction, self.length = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.rand(4, 1))
        self.last = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(nn.functional.linear(self.lstm(x)[0], self.direction * self.length))


class WeightDrop(nn.Module):
    """Recurrent weights recomputed from raw ones before each call, as AWD-LSTM does."""

    def __init__(self, module: nn.RNNBase, names: list[str]) -> None:
        super().__init__()
        self.module, self.names, self.p = module, names, 0.4
        for name in names:
            weight = getattr(module, name)
            self.register_parameter(f"{name}_raw", nn.Parameter(weight.data.clone()))
            del module._parameters[name]
            setattr(module, name, nn.functional.dropout(weight, 0.0, False).detach().clone())
        module.flatten_parameters = lambda: None  # type: ignore[method-assign]

    def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        for name in self.names:
            raw = getattr(self, f"{name}_raw")
            setattr(self.module, name, nn.functional.dropout(raw, self.p, self.training))
        return self.module(*args)


@case(batch=tokens)
class AwdLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.rnns = nn.ModuleList(
            [WeightDrop(nn.LSTM(6 if k == 0 else 8, 8 if k < 2 else 6), ["weight_hh_l0"]) for k in range(3)]
        )
        self.out = nn.Linear(6, 11)
        self.out.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embedding(words.t())
        for rnn in self.rnns:
            x, _ = rnn(x)
        return self.out(x)


@case(batch=tokens, equal=(("rnn.module:l0", "rnn.module:l1"),))
class StackedWeightDrop(nn.Module):
    """Weight drop on a stack: weights that are no parameters of the module keep its layers together."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.rnn = WeightDrop(nn.LSTM(6, 8, 2), ["weight_hh_l0", "weight_hh_l1"])
        self.out = nn.Linear(8, 11)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(self.embedding(words.t()))[0])


@case()
class WeightNorm(nn.Module):
    """The old `weight_norm` on a consumer: fewer columns would make the others longer, so it becomes a plain weight."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.out = nn.utils.weight_norm(nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(x)[0])


@case()
class WeightNormRows(nn.Module):
    """Weight normalisation of a convolution in front does not touch the units."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.conv = nn.utils.weight_norm(nn.Conv1d(5, 6, 3, padding=1))
        self.gru, self.out = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.gru(self.conv(x.transpose(1, 2)).transpose(1, 2))[0])
