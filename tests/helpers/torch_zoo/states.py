"""Final states as features, and states handed over."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.helpers.torch_zoo.case import case, frames, tokens

EQUAL = (("lstm:l0", "lstm:l1"),)
EQUAL_BI = (("lstm:l0", "lstm:l0_reverse", "lstm:l1", "lstm:l1_reverse"),)


class Encoder(nn.Module):
    bidirectional = False

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, 2, batch_first=True, bidirectional=self.bidirectional)
        self.out = nn.Linear(features, 3)


@case()
class LastLayerState(Encoder):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(x)[1][0][-1])


@case()
class LastCellState(Encoder):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (_, c) = self.lstm(x)
        return self.out(torch.tanh(c[1]))


@case(features=16, equal=EQUAL_BI)
class BothDirectionsState(Encoder):
    bidirectional = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (h, _) = self.lstm(x)
        return self.out(torch.cat((h[-2, :, :], h[-1, :, :]), dim=1))


@case(features=16, equal=EQUAL)
class FlattenedState(Encoder):
    """All layers' states side by side, by transposing and flattening."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (h, _) = self.lstm(x)
        return self.out(h.transpose(0, 1).reshape(x.size(0), -1))


@case(features=16, equal=EQUAL_BI)
class ViewedState(Encoder):
    """`view(layers, directions, batch, units)`, then the last layer's two directions."""

    bidirectional = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (h, _) = self.lstm(x)
        h = h.view(self.lstm.num_layers, 2, x.size(0), self.lstm.hidden_size)[-1]
        return self.out(torch.cat([h[0], h[1]], 1))


@case(features=32, equal=EQUAL_BI)
class PermutedState(Encoder):
    bidirectional = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (h, _) = self.lstm(x)
        return self.out(h.permute(1, 0, 2).contiguous().view(x.size(0), -1))


@case(coupled=(("lstm:l0", "lstm:l1"),))
class SummedState(Encoder):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (h, _) = self.lstm(x)
        return self.out(h.sum(0))


@case(coupled=(("lstm:l0", "lstm:l1"),))
class AddedStates(Encoder):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (h, _) = self.lstm(x)
        return self.out(h[0] + h[1])


@case(features=24)
class StateBesideOutput(Encoder):
    """Last state, mean and maximum of the outputs, concatenated."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, (h, _) = self.lstm(x)
        return self.out(torch.cat([h[-1], output.mean(1), output.max(1)[0]], 1))


@case(
    coupled=(("encoder:l0", "decoder:l0"), ("encoder:l1", "decoder:l1")),
    batch=lambda b, t: (frames(b, t), tokens(b, 4)),
)
class DirectHandover(nn.Module):
    """Sequence to sequence: the decoder starts where the encoder ended."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.LSTM(5, 8, 2, batch_first=True)
        self.decoder = nn.LSTM(6, 8, 2, batch_first=True)
        self.out = nn.Linear(8, 11)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _, hidden = self.encoder(source)
        found = []
        for t in range(target.size(1)):
            output, hidden = self.decoder(self.embedding(target[:, t : t + 1]), hidden)
            found.append(self.out(output))
        return torch.cat(found, 1)


@case(batch=lambda b, t: (frames(b, t), tokens(b, 4)))
class ProjectedBridge(nn.Module):
    """A bidirectional encoder whose last states go through a layer into the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.GRU(5, 8, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(16, 7)
        self.decoder = nn.GRU(6, 7, batch_first=True)
        self.out = nn.Linear(7, 11)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _, h = self.encoder(source)
        start = torch.tanh(self.bridge(torch.cat([h[0], h[1]], 1))).unsqueeze(0)
        output, _ = self.decoder(self.embedding(target), start)
        return self.out(output)


@case(
    batch=lambda b, t: (frames(b, t), tokens(b, 4)),
    coupled=tuple(
        (f"encoder:l{layer}{direction}", f"decoder:l{layer}:{units}")
        for layer in (0, 1)
        for direction, units in (("", "0-3"), ("_reverse", "4-7"))
    ),
)
class ConcatenatedBridge(nn.Module):
    """The encoder's two directions, concatenated layer by layer, start a decoder of twice the size."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.LSTM(5, 4, 2, batch_first=True, bidirectional=True)
        self.decoder = nn.LSTM(6, 8, 2, batch_first=True)
        self.out = nn.Linear(8, 11)

    @staticmethod
    def _join(state: torch.Tensor) -> torch.Tensor:
        return torch.cat([state[0 : state.size(0) : 2], state[1 : state.size(0) : 2]], 2)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _, (h, c) = self.encoder(source)
        output, _ = self.decoder(self.embedding(target), (self._join(h), self._join(c)))
        return self.out(output)


@case(
    batch=lambda b, t: (frames(b, t), tokens(b, 4)),
    equal=(("encoder:l0", "encoder:l0_reverse", "encoder:l1", "encoder:l1_reverse"),),
)
class LayerSlice(nn.Module):
    """A decoder with fewer layers starts from the encoder's first ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.GRU(5, 8, 2, batch_first=True, bidirectional=True)
        self.decoder = nn.GRU(6, 8, 2, batch_first=True)
        self.out = nn.Linear(8, 11)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _, h = self.encoder(source)
        output, _ = self.decoder(self.embedding(target), h[: self.decoder.num_layers])
        return self.out(output)


@case(batch=lambda b, t: (tokens(t, b), None), states=(("rnn:l0", "rnn:l1"),) * 2, equal=(("rnn:l0", "rnn:l1"),))
class LanguageModel(nn.Module):
    """Truncated back-propagation: the state is returned, detached by the caller and handed back."""

    def __init__(self) -> None:
        super().__init__()
        self.nhid, self.nlayers = 8, 2
        self.encoder = nn.Embedding(11, 8)
        self.rnn = nn.LSTM(8, 8, 2, dropout=0.2)
        self.decoder = nn.Linear(8, 11)

    def init_hidden(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        weight = next(self.parameters())
        return weight.new_zeros(self.nlayers, batch, self.nhid), weight.new_zeros(self.nlayers, batch, self.nhid)

    def forward(self, words: torch.Tensor, hidden: Any = None) -> tuple[torch.Tensor, Any]:
        hidden = self.init_hidden(words.size(1)) if hidden is None else hidden
        output, hidden = self.rnn(self.encoder(words), hidden)
        decoded = self.decoder(output).view(-1, self.decoder.out_features)
        return decoded.log_softmax(1), hidden


@case(
    batch=lambda b, t: (tokens(t, b), torch.randn(2, b, 8)),
    states=(("rnn:l0", "rnn:l1"),),
    equal=(("rnn:l0", "rnn:l1"),),
)
class CarriedState(nn.Module):
    """The caller makes the first state and hands every next one back."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.rnn = nn.GRU(5, 8, 2)
        self.out = nn.Linear(8, 3)

    def forward(self, words: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output, hidden = self.rnn(self.embedding(words), hidden)
        return self.out(output), hidden


@case()
class LearnedState(nn.Module):
    """Initial states that are parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 8, 2, batch_first=True)
        self.h0 = nn.Parameter(torch.randn(2, 1, 8))
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x, self.h0.expand(-1, x.size(0), -1).contiguous())[0])


@case(equal=(("lstm:l0", "lstm:l0_reverse"),))
class RandomState(nn.Module):
    """States drawn at random by the model, as the BiLSTM-CRF tutorial does; zeros here so that they can be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_dim = 16
        self.lstm = nn.LSTM(5, self.hidden_dim // 2, num_layers=1, bidirectional=True)
        self.hidden2tag = nn.Linear(self.hidden_dim, 4)
        self.transitions = nn.Parameter(torch.randn(4, 4))

    def init_hidden(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (torch.zeros(2, batch, self.hidden_dim // 2), torch.zeros(2, batch, self.hidden_dim // 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(0, 1)
        h, c = (state.to(x) for state in self.init_hidden(x.size(1)))
        features = self.hidden2tag(self.lstm(x, (h, c))[0].view(x.size(0), x.size(1), self.hidden_dim))
        score = features[0]
        for step in features[1:]:
            score = torch.logsumexp(score.unsqueeze(2) + self.transitions, 1) + step
        return torch.logsumexp(score, 1)
