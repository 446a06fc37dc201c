"""Models that take states and return them: one step or one chunk of a stream at a time.

Each is called as `model(x, *states)` and returns `(y, *states)`, whatever nest the states are in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

STREAMS: dict[str, Stream] = {}


@dataclass(frozen=True, eq=False)
class Stream:
    """A model, and the states that its caller hands in first.

    Attributes:
        name: Name of the model.
        build: Makes it.
        states: The states for a batch size, at the width before pruning.
        layers: The layers that can be pruned.
        kept: Whether modules keep the states; the model is called as `model(x)` then.
    """

    name: str
    build: Callable[[], nn.Module]
    states: Callable[[int], tuple[Any, ...]]
    layers: tuple[str, ...]

    def __repr__(self) -> str:
        return self.name


def stream(states: Callable[[int], tuple[Any, ...]], *layers: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a model class."""

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        STREAMS[kind.__name__] = Stream(kind.__name__, kind, states, layers or ("cell:l0",))
        return kind

    return register


def one(batch: int) -> tuple[Tensor]:
    return (torch.randn(batch, 8),)


def two(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 8), torch.randn(batch, 8)


class Base(nn.Module):
    """An LSTM cell and what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(5, 8), nn.Linear(8, 3)


class GruBase(nn.Module):
    """A GRU cell and what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(5, 8), nn.Linear(8, 3)


@stream(two)
class CellStep(Base):
    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        h, c = self.cell(x, (h, c))
        return self.out(h), h, c


@stream(one)
class MaskedStep(GruBase):
    """The state is reset where an episode ended, and detached."""

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.cell(x, memory * (x[:, :1] > 0))
        return self.out(memory), memory.detach()


@stream(one)
class OverwrittenStep(GruBase):
    """The rows of sequences that begin anew are overwritten."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = h.clone()
        h[x[:, 0] > 0] = 0
        h = self.cell(x, h)
        return self.out(h), h


@stream(lambda b: (torch.randn(8, b),))
class TransposedStep(GruBase):
    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(x, s.t())
        return self.out(h), h.t()


@stream(lambda b: (torch.randn(b, 1, 8, 1),))
class WideStep(GruBase):
    """The units in the middle, between axes of length one."""

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(x, s.squeeze(3).squeeze(1))
        return self.out(h), h[:, None, :, None]


@stream(lambda b: ({"h": torch.randn(b, 8), "c": torch.randn(b, 8)},))
class DictStep(Base):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h, c = self.cell(x, (state["h"], state["c"]))
        return self.out(h), {"h": h, "c": c}


@dataclass
class Memory:
    h: Tensor
    c: Tensor
    calls: int = 0


@stream(lambda b: (Memory(torch.randn(b, 8), torch.randn(b, 8)),))
class DataclassStep(Base):
    def forward(self, x: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        h, c = self.cell(x, (state.h, state.c))
        return self.out(h), Memory(h, c, state.calls + 1)


@stream(lambda b: (torch.randn(b, 16),))
class SideBySideStep(Base):
    """h and c in one tensor, side by side."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, c = self.cell(x, state.chunk(2, 1))
        return self.out(h), torch.cat([h, c], 1)


@stream(lambda b: (torch.randn(b, 16),))
class PackedInSplitOut(Base):
    """h and c come in side by side and go back one by one; the caller joins them."""

    def forward(self, x: Tensor, state: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        state = torch.cat(state, 1) if isinstance(state, tuple) else state
        h, c = self.cell(x, state.chunk(2, 1))
        return self.out(h), (h, c)


@stream(lambda b: (torch.randn(2, b, 8),))
class StackedStep(Base):
    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, c = self.cell(x, (state[0], state[1]))
        return self.out(h), torch.stack([h, c])


@stream(lambda b: (torch.randn(b, 2, 2, 8),), "first:l0", "second:l0")
class StackOfCellsStep(nn.Module):
    """Two cells, their h and c in one tensor: batch, layer, kind, units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.LSTMCell(5, 8), nn.LSTMCell(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        new = []
        for k, cell in enumerate((self.first, self.second)):
            x, c = cell(x, (state[:, k, 0], state[:, k, 1]))
            new.append(torch.stack([x, c], 1))
        return self.out(x), torch.stack(new, 1)


@stream(lambda b: (torch.randn(b, 20),), "first:l0", "second:l0")
class SizesSideBySideStep(nn.Module):
    """Two cells of different sizes, their states in one vector, cut at the seam."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.GRUCell(5, 8), nn.GRUCell(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        seam = self.first.hidden_size
        one = self.first(x, state[:, :seam])
        two = self.second(one, state[:, seam:])
        return self.out(two), torch.cat([one, two], 1)


@stream(one)
class ReadByLinearStep(GruBase):
    """The state is read by a weight before the cell takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(8, 5)

    def forward(self, x: Tensor, hs: Tensor) -> tuple[Tensor, Tensor]:
        hs = self.cell(x + torch.tanh(self.before(hs)), hs)
        return self.out(hs), hs


@stream(lambda b: (torch.randn(2, b, 8),), "rnn:l0", "rnn:l1")
class FlattenedChunk(nn.Module):
    """All layers' last states, flattened for a weight, and carried."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(5, 8, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        _, h = self.rnn(x[None], h)
        return self.out(h.transpose(0, 1).flatten(1)), h


@stream(lambda b: ((torch.randn(b, 8), torch.randn(b, 8)),), "rnn:l0")
class SqueezedChunk(nn.Module):
    """`forward` of the module called directly, on states that the model squeezes."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, (h, c) = self.rnn.forward(x[None], (state[0][None], state[1][None]))
        return self.out(y[0]), (h[0], c[0])


@stream(two, ":l0")
class WrittenLstmStep(nn.Module):
    """One step of an LSTM, its gates from one weight on input and state side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.out = nn.Linear(13, 32), nn.Linear(8, 3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        i, f, g, o = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return self.out(h), h, c


@stream(lambda b: (torch.randn(2, b, 8),), ":l0")
class WrittenLstmPackedStep(WrittenLstmStep):
    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, h, c = super().forward(x, *state.unbind(0))
        return y, torch.stack([h, c])


@stream(one, ":l0")
class WrittenGruStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.n = nn.Linear(5, 24), nn.Linear(8, 16, bias=False), nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        xr, xz, xn = self.x(x).chunk(3, 1)
        hr, hz = self.h(h).chunk(2, 1)
        z = (xz + hz).sigmoid()
        h = (1 - z) * (xn + (xr + hr).sigmoid() * self.n(h)).tanh() + z * h
        return self.out(h), h


@stream(one, ":l0")
class ElmanStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.x(x) + self.h(h))
        return self.out(h), h


@stream(lambda b: (torch.randn(b, 8, 4, 4), torch.randn(b, 8, 4, 4)), ":l0")
class ConvLstmStep(nn.Module):
    """The units are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.out = nn.Conv2d(9, 32, 3, padding=1), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        frame = x[:, :1, None, None].expand(-1, 1, 4, 4)
        i, f, g, o = self.gates(torch.cat([frame, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return self.out(h).mean((2, 3)), h, c


@stream(one, "cell:l0")
class NormedStep(GruBase):
    """Statistics of each unit over the batch on the way in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(x, self.norm(h))
        return self.out(h), h
