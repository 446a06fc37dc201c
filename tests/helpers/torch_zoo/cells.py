"""Cells in Python loops."""

from __future__ import annotations

import torch
from torch import nn

from tests.helpers.torch_zoo.case import case, frames, tokens


@case("lstm_cell", nn.LSTMCell)
@case("gru_cell", nn.GRUCell)
@case("rnn_cell", nn.RNNCell)
class CellLoop(nn.Module):
    """One cell, its state made by the caller's zeros."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell = kind(5, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = None
        found = []
        for step in x.unbind(1):
            state = self.cell(step, state)
            found.append(state[0] if isinstance(state, tuple) else state)
        return self.out(torch.stack(found, 1))


@case()
class CellStack(nn.Module):
    """A stack of cells with states that the model allocates from its own attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 8
        self.cells = nn.ModuleList([nn.LSTMCell(5, 8), nn.LSTMCell(8, 8), nn.LSTMCell(8, 8)])
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = [
            (x.new_zeros(x.size(0), self.hidden_size), x.new_zeros(x.size(0), self.hidden_size)) for _ in self.cells
        ]
        found = []
        for t in range(x.size(1)):
            h = x[:, t]
            for k, cell in enumerate(self.cells):
                states[k] = cell(h, states[k])
                h = self.drop(states[k][0])
            found.append(self.out(h))
        return torch.stack(found, 1)


@case()
class CellWrittenZeros(nn.Module):
    """Zeros of a size written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(5, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(x.size(0), 8, dtype=x.dtype, device=x.device)
        for t in range(x.size(1)):
            h = self.cell(x[:, t], h)
        return self.out(h)


@case()
class CellIntoBuffer(nn.Module):
    """Hidden states written step by step into one tensor made beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.units = 8
        self.cell = nn.LSTMCell(5, self.units)
        self.out = nn.Linear(self.units, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(x.size(0), self.units, dtype=x.dtype, device=x.device)
        c = torch.zeros_like(h)
        held = torch.zeros(x.size(0), x.size(1), self.units, dtype=x.dtype, device=x.device)
        for t in range(x.size(1)):
            h, c = self.cell(x[:, t], (h, c))
            held[:, t, :] = h
        return self.out(held)


@case(batch=tokens)
class GreedyDecoder(nn.Module):
    """Encoder, then a decoder that is fed the arg max of what it said."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.GRU(6, 8, batch_first=True)
        self.decoder = nn.GRUCell(6, 8)
        self.out = nn.Linear(8, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, h = self.encoder(self.embedding(x))
        h = h[0]
        token = torch.zeros(x.size(0), dtype=torch.long, device=x.device)
        found = []
        for _ in range(4):
            h = self.decoder(self.embedding(token), h)
            logits = self.out(h)
            token = logits.argmax(-1)
            found.append(logits)
        return torch.stack(found, 1)


@case(batch=lambda b, t: (tokens(b, t), torch.randn(b, 6, 7)))
class AttentionCell(nn.Module):
    """Image captioning: a cell fed by attention over regions, its state started from their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.start_h, self.start_c = nn.Linear(7, 8), nn.Linear(7, 8)
        self.keys, self.query, self.energy = nn.Linear(7, 5), nn.Linear(8, 5), nn.Linear(5, 1)
        self.gate = nn.Linear(8, 7)
        self.cell, self.drop = nn.LSTMCell(6 + 7, 8), nn.Dropout(0.5)
        self.out = nn.Linear(8, 11)

    def forward(self, words: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        h, c = self.start_h(regions.mean(1)), self.start_c(regions.mean(1))
        found = []
        for t in range(words.size(1)):
            scores = self.energy(torch.relu(self.keys(regions) + self.query(h).unsqueeze(1))).squeeze(2)
            alpha = scores.softmax(1)
            context = (regions * alpha.unsqueeze(2)).sum(1) * torch.sigmoid(self.gate(h))
            h, c = self.cell(torch.cat([self.embedding(words[:, t]), context], 1), (h, c))
            found.append(self.out(self.drop(h)))
        return torch.stack(found, 1)


@case()
class ResidualCells(nn.Module):
    """Cells whose outputs are added to their inputs from the second layer on."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.GRUCell(5, 8), nn.GRUCell(8, 8), nn.GRUCell(8, 8)])
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h: list[torch.Tensor | None] = [None] * 3
        for t in range(x.size(1)):
            below = x[:, t]
            for k, cell in enumerate(self.cells):
                h[k] = cell(below, h[k])
                below = h[k] if k == 0 else below + h[k]
        return self.out(below)


@case()
class BidirectionalCells(nn.Module):
    """Two cells, one running backwards, concatenated step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards, self.backwards = nn.LSTMCell(5, 8), nn.LSTMCell(5, 6)
        self.out = nn.Linear(14, 3)

    def _run(self, cell: nn.LSTMCell, steps: list[torch.Tensor]) -> list[torch.Tensor]:
        h = c = steps[0].new_zeros(steps[0].size(0), cell.hidden_size)
        found = []
        for step in steps:
            h, c = cell(step, (h, c))
            found.append(h)
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = list(x.unbind(1))
        ahead, back = self._run(self.forwards, steps), self._run(self.backwards, steps[::-1])[::-1]
        return self.out(torch.stack([torch.cat(pair, 1) for pair in zip(ahead, back, strict=True)], 1))


@case(batch=lambda b, t: (frames(b, t), torch.randint(0, 2, (b, t)).to(torch.get_default_dtype())))
class MaskedCell(nn.Module):
    """The old state is kept where a step is padding: `m * new + (1 - m) * old`."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(5, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        h = c = torch.zeros(x.size(0), self.cell.hidden_size, dtype=x.dtype, device=x.device)
        for t in range(x.size(1)):
            new_h, new_c = self.cell(x[:, t], (h, c))
            m = valid[:, t : t + 1].to(x.dtype)
            h, c = m * new_h + (1 - m) * h, torch.where(m > 0, new_c, c)
        return self.out(h)
