"""`nn.LSTM`, `nn.GRU` and `nn.RNN` with every option, dense and packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from tests.helpers.torch_zoo.case import case, frames, lengths, tokens


@case("lstm", nn.LSTM)
@case("gru", nn.GRU)
@case("rnn", nn.RNN)
@case("rnn_relu", nn.RNN, nonlinearity="relu")
@case("lstm_no_bias", nn.LSTM, bias=False)
@case("lstm_two_layers", nn.LSTM, num_layers=2, dropout=0.3)
@case("gru_three_layers_bidirectional", nn.GRU, num_layers=3, bidirectional=True)
@case("rnn_two_layers_bidirectional", nn.RNN, num_layers=2, bidirectional=True)
@case("lstm_time_first", nn.LSTM, num_layers=2, batch_first=False)
@case("lstm_projected", nn.LSTM, proj_size=4)
@case("lstm_projected_bidirectional", nn.LSTM, proj_size=4, num_layers=2, bidirectional=True)
@case("lstm_projected_no_bias", nn.LSTM, proj_size=3, bias=False, num_layers=2)
class Tagger(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        options = {"batch_first": True, **options}
        self.recurrent = kind(5, 8, **options)
        width = (options.get("proj_size") or 8) * (2 if options.get("bidirectional") else 1)
        self.out = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.recurrent(x)[0])


@case(batch=lambda b, t: torch.randn(t, 5))
class Unbatched(Tagger):
    def __init__(self) -> None:
        super().__init__(nn.LSTM, num_layers=2, bidirectional=True)


@case(batch=lambda b, t: (frames(b, t), lengths(b, t)))
class PackedUnsorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x, sizes.cpu(), batch_first=True, enforce_sorted=False)
        output, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.out(output)


@case(batch=lambda b, t: (frames(b, t).transpose(0, 1), lengths(b, t, sort=True)))
class PackedSorted(nn.Module):
    """Sorted lengths, the last hidden state of each sequence as its features."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        _, h = self.gru(pack_padded_sequence(x, sizes))
        return self.out(h.squeeze(0))


@case(batch=lambda b, t: (frames(b, t), lengths(b, t)))
class PackedLastOutput(nn.Module):
    """The output at each sequence's last step, gathered from the padded outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        order = sizes.argsort(descending=True)
        packed = pack_padded_sequence(x[order], sizes[order], batch_first=True)
        output, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.size(1))
        output = output[order.argsort()]
        index = (sizes - 1).view(-1, 1, 1).expand(-1, 1, output.size(2)).to(output.device)
        return self.out(output.gather(1, index).squeeze(1))


@case(batch=lambda b, t: (tokens(b, t), lengths(b, t)))
class PackedData(nn.Module):
    """A layer applied to the data of a packed sequence, and a second recurrent layer on the result."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.first, self.second = nn.LSTM(5, 8), nn.GRU(6, 7)
        self.between, self.out = nn.Linear(8, 6), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(self.embedding(x), sizes, batch_first=True, enforce_sorted=False)
        output, _ = self.first(packed)
        data = torch.relu(self.between(output.data))
        output, _ = self.second(
            PackedSequence(data, output.batch_sizes, output.sorted_indices, output.unsorted_indices)
        )
        return self.out(pad_packed_sequence(output)[0])


@case(batch=lambda b, t: ([torch.randn(t - k % t, 5) for k in range(b)],))
class PackedList(nn.Module):
    """A list of sequences of different lengths; the output stays packed."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, 2)
        self.out = nn.Linear(8, 3)

    def forward(self, sequences: list[torch.Tensor]) -> PackedSequence:
        output, _ = self.lstm(pack_sequence(sequences, enforce_sorted=False))
        return output._replace(data=self.out(output.data))


@case(batch=lambda b, t: (pack_padded_sequence(torch.randn(t, b, 5), lengths(b, t), enforce_sorted=False),))
class PackedInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(5, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, packed: PackedSequence) -> torch.Tensor:
        return self.out(pad_packed_sequence(self.rnn(packed)[0])[0])
