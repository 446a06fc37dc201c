"""Attention over the outputs of recurrent layers."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.helpers.torch_zoo.case import case, frames, lengths, tokens


def padding(sizes: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.size(1), device=x.device)[None, :] >= sizes.to(x.device)[:, None]


def with_lengths(b: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    return frames(b, t), lengths(b, t)


def two_sequences(b: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    return frames(b, t), tokens(b, 4)


@case(batch=with_lengths)
class AttentionPooling(nn.Module):
    """A learned query over time, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 8, batch_first=True, bidirectional=True)
        self.project, self.score = nn.Linear(16, 6), nn.Linear(6, 1, bias=False)
        self.out = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        output, _ = self.gru(x)
        scores = self.score(torch.tanh(self.project(output))).squeeze(-1)
        alpha = scores.masked_fill(padding(sizes, x), -1e9).softmax(1)
        return self.out(torch.bmm(alpha.unsqueeze(1), output).squeeze(1))


@case()
class LearnedVector(nn.Module):
    """A context vector as a bare parameter: `tanh(h) @ w`."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        self.w = nn.Parameter(torch.randn(8))
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.lstm(x)
        alpha = F.softmax(torch.matmul(torch.tanh(h), self.w), dim=1).unsqueeze(-1)
        return self.out(torch.sum(h * alpha, 1))


@case(batch=two_sequences)
class Additive(nn.Module):
    """Additive attention with the context in the decoder's input."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.GRU(5, 8, batch_first=True, bidirectional=True)
        self.first = nn.Linear(16, 7)
        self.decoder = nn.GRU(6 + 16, 7, batch_first=True)
        self.attend, self.v = nn.Linear(16 + 7, 5), nn.Parameter(torch.rand(5))
        self.out = nn.Linear(7 + 16 + 6, 11)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory, h = self.encoder(source)
        h = torch.tanh(self.first(torch.cat((h[-2], h[-1]), 1)))
        found = []
        for t in range(target.size(1)):
            word = self.embedding(target[:, t]).unsqueeze(1)
            query = h.unsqueeze(1).repeat(1, memory.size(1), 1)
            energy = torch.tanh(self.attend(torch.cat((query, memory), 2))).permute(0, 2, 1)
            v = self.v.repeat(memory.size(0), 1).unsqueeze(1)
            alpha = torch.bmm(v, energy).softmax(2)
            context = torch.bmm(alpha, memory)
            output, h = self.decoder(torch.cat((word, context), 2), h.unsqueeze(0))
            h = h.squeeze(0)
            found.append(self.out(torch.cat((output, context, word), 2)))
        return torch.cat(found, 1)


@case(batch=two_sequences, coupled=(("encoder:l0", "decoder:l0"),))
class Dot(nn.Module):
    """Luong's dot score, which couples encoder and decoder, and input feeding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.LSTM(5, 8, batch_first=True)
        self.decoder = nn.LSTMCell(6 + 8, 8)
        self.combine, self.out = nn.Linear(16, 8), nn.Linear(8, 11)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory, (h, c) = self.encoder(source)
        h, c = h.squeeze(0), c.squeeze(0)
        feed = memory.new_zeros(source.size(0), 8)
        found = []
        for t in range(target.size(1)):
            h, c = self.decoder(torch.cat([self.embedding(target[:, t]), feed], 1), (h, c))
            alpha = F.softmax(torch.bmm(memory, h.unsqueeze(2)).squeeze(2), 1)
            context = torch.bmm(alpha.unsqueeze(1), memory).squeeze(1)
            feed = torch.tanh(self.combine(torch.cat([context, h], 1)))
            found.append(self.out(feed))
        return torch.stack(found, 1)


@case(batch=two_sequences)
class General(nn.Module):
    """Luong's general score: a matrix between two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.GRU(5, 8, batch_first=True)
        self.decoder = nn.GRU(6, 7, batch_first=True)
        self.between = nn.Linear(8, 7, bias=False)
        self.out = nn.Linear(8 + 7, 11)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory, _ = self.encoder(source)
        output, _ = self.decoder(self.embedding(target))
        alpha = (output @ self.between(memory).transpose(1, 2)).softmax(-1)
        return self.out(torch.cat([alpha @ memory, output], -1))


@case(batch=with_lengths)
class SelfAttentionWritten(nn.Module):
    """Scaled dot products in heads, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        self.q, self.k, self.v = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        h, _ = self.lstm(x)
        q, k, v = (layer(h).view(h.size(0), h.size(1), 2, 3).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(3)
        scores = scores.masked_fill(padding(sizes, x)[:, None, None, :], float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(h.size(0), h.size(1), 6))


@case()
class SelfAttentionOnUnits(nn.Module):
    """Outputs attend to each other without projections."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.lstm(x)
        return self.out(F.scaled_dot_product_attention(h, h, h, scale=0.3))


@case(batch=with_lengths)
class MultiHead(nn.Module):
    """`nn.MultiheadAttention` between two recurrent layers, of its own width."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True, bidirectional=True)
        self.project = nn.Linear(16, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.second = nn.GRU(6, 7, batch_first=True)
        self.out = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        h = self.project(self.lstm(x)[0])
        h, _ = self.attention(h, h, h, key_padding_mask=padding(sizes, x))
        return self.out(self.second(h)[0])


@case()
class MultiHeadOnUnits(nn.Module):
    """`nn.MultiheadAttention` whose query, key and value are the outputs themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.lstm(x)
        return self.out(self.attention(h, h, h, need_weights=False)[0])


@case(batch=two_sequences)
class MultiHeadOtherKeys(nn.Module):
    """`nn.MultiheadAttention` with keys and values of another width than the query."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.GRU(5, 8, batch_first=True)
        self.decoder = nn.GRU(6, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, kdim=8, vdim=8, batch_first=True)
        self.out = nn.Linear(4, 11)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory, _ = self.encoder(source)
        query, _ = self.decoder(self.embedding(target))
        return self.out(self.attention(query, memory, memory)[0])


@case(batch=frames)
class MultiHeadResidual(nn.Module):
    """`h + attention(h)`: the attention's output has the width of the units."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.lstm(x)
        return self.out(h + self.attention(h, h, h)[0])


@case(batch=two_sequences, coupled=(("encoder:l0", "decoder:l0"),))
class Pointer(nn.Module):
    """A pointer network: the attention's weights are the output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.LSTM(5, 8, batch_first=True)
        self.decoder = nn.LSTM(6, 8, batch_first=True)
        self.w1, self.w2, self.v = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 1)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory, state = self.encoder(source)
        output, _ = self.decoder(self.embedding(target), state)
        energy = torch.tanh(self.w1(memory).unsqueeze(1) + self.w2(output).unsqueeze(2))
        return self.v(energy).squeeze(-1).log_softmax(-1)


@case(batch=two_sequences)
class LocationAware(nn.Module):
    """Tacotron-like: attention over a memory with convolved earlier weights, a stack of decoder cells."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.encoder = nn.LSTM(5, 4, batch_first=True, bidirectional=True)
        self.attention_rnn, self.decoder_rnn = nn.LSTMCell(5 + 8, 6), nn.LSTMCell(6 + 8, 7)
        self.query, self.memory = nn.Linear(6, 5, bias=False), nn.Linear(8, 5, bias=False)
        self.location, self.place = nn.Conv1d(2, 3, 3, padding=1, bias=False), nn.Linear(3, 5, bias=False)
        self.v, self.out = nn.Linear(5, 1), nn.Linear(7 + 8, 5)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory, _ = self.encoder(source)
        keys = self.memory(memory)
        h1 = c1 = memory.new_zeros(memory.size(0), self.attention_rnn.hidden_size)
        h2 = c2 = memory.new_zeros(memory.size(0), self.decoder_rnn.hidden_size)
        alpha = total = memory.new_zeros(memory.size(0), memory.size(1))
        context = memory.new_zeros(memory.size(0), memory.size(2))
        found = []
        for word in self.embedding(target).unbind(1):
            h1, c1 = self.attention_rnn(torch.cat((word, context), -1), (h1, c1))
            places = self.location(torch.stack((alpha, total), 1)).transpose(1, 2)
            energy = self.v(torch.tanh(self.query(h1.unsqueeze(1)) + self.place(places) + keys))
            alpha = energy.squeeze(-1).softmax(1)
            total = total + alpha
            context = torch.bmm(alpha.unsqueeze(1), memory).squeeze(1)
            h2, c2 = self.decoder_rnn(torch.cat((h1, context), -1), (h2, c2))
            found.append(self.out(torch.cat((h2, context), 1)))
        return torch.stack(found, 1)
