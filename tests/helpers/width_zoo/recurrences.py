"""Recurrences without a recurrent matrix: their width is that of the maps before them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.helpers.torch_zoo.case import frames
from tests.helpers.width_zoo.case import case
from tests.helpers.width_zoo.convolutions import RETURNED


@case(
    {"gate:features": 6, "candidate:features": 6},
    pins=RETURNED,
    coupled=(("gate:features", "candidate:features"),),
)
class MinimalGru(nn.Module):
    """minGRU step by step: gate and candidate read the input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.candidate, self.out = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, found = x.new_zeros(len(x), 6), []
        h = torch.zeros_like(self.gate(x[:, 0]))
        for step in x.unbind(1):
            z = torch.sigmoid(self.gate(step))
            h = (1 - z) * h + z * self.candidate(step)
            found.append(h)
        return self.out(torch.stack(found, 1))


@case(
    {"gates:features": 4},
    pins=RETURNED,
)
class ParallelScan(nn.Module):
    """minLSTM as a scan in logarithms, its three maps in one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.gates, self.out = 4, nn.Linear(5, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        forget, enter, candidate = self.gates(x).split(self.hidden, -1)
        kept = F.logsigmoid(forget).cumsum(1)
        values = torch.log(F.softplus(candidate) + 1e-3) + F.logsigmoid(enter)
        return self.out(torch.exp(kept + torch.logcumsumexp(values - kept, 1)))


@case(
    {"enter:features": 6},
    pins=RETURNED,
)
class DiagonalStates(nn.Module):
    """A diagonal state space with a learned decay and a way around it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(5, 6), nn.Linear(6, 3)
        self.decay, self.around = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        u = self.enter(x)
        decay = torch.exp(-F.softplus(self.decay))
        steps = torch.arange(x.shape[1], dtype=x.dtype)
        powers = decay[None, None] ** (steps[:, None] - steps[None, :]).clamp(min=0)[..., None]
        mask = (steps[:, None] >= steps[None, :]).to(x.dtype)[..., None]
        states = ((powers * mask)[None] * u[:, None]).sum(2)
        return self.out(states + self.around * u)


@case(
    {"enter:features": 8, "choose:features[0:2]": 2, "step:features": 8, "leave:features": 7, "conv:channels": 6},
    pins={
        **RETURNED,
        "choose:features[2:5]": "outer product of two sets of units",
        "choose:features[5:8]": "outer product of two sets of units",
    },
    coupled=(("enter:features", "step:features"),),
)
class SelectiveScan(nn.Module):
    """A selective state space written out: a gate, a short depthwise convolution, a state of its own per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.states, self.rank = 8, 3, 2
        self.conv, self.enter = nn.Conv1d(5, 6, 1), nn.Linear(6, 16)
        self.short = nn.Conv1d(8, 8, 3, padding=2, groups=8)
        self.choose, self.step = nn.Linear(8, 2 + 2 * 3), nn.Linear(2, 8)
        self.decay, self.around = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(8))
        self.leave, self.out = nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        u, gate = self.enter(x).chunk(2, -1)
        u = F.silu(self.short(u.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        step, read, write = self.choose(u).split([self.rank, self.states, self.states], -1)
        step = F.softplus(self.step(step))
        decay = torch.exp(step[..., None] * -torch.exp(self.decay))
        given = step[..., None] * read[:, :, None] * u[..., None]
        h, found = torch.zeros_like(given[:, 0]), []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + given[:, t]
            found.append((h * write[:, t, None]).sum(-1))
        y = (torch.stack(found, 1) + self.around * u) * F.silu(gate)
        return self.out(F.relu(self.leave(y)))


@case(
    {"conv:channels": 5},
    pins=RETURNED,
)
class QuasiRecurrent(nn.Module):
    """A convolution makes candidates and gates, taken apart by their position; the recurrence is element by element."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.conv, self.out = 5, nn.Conv1d(5, 15, 2, padding=1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        z, f, o = y[..., : self.hidden], y[..., self.hidden : 2 * self.hidden], y[..., 2 * self.hidden :]
        c, found = torch.zeros_like(z[:, 0]), []
        for t in range(x.shape[1]):
            gate = torch.sigmoid(f[:, t])
            c = gate * c + (1 - gate) * torch.tanh(z[:, t])
            found.append(torch.sigmoid(o[:, t]) * c)
        return self.out(torch.stack(found, 1))


@case(
    {"highway:features": 6, "carry:features": 6, "first:features": 6, "lstm:l0": 4},
    frames,
    pins=RETURNED,
    coupled=(("first:features", "highway:features", "carry:features"),),
)
class Highway(nn.Module):
    """Gated shortcuts between two layers of equal width, in front of an LSTM with a written-out size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.highway, self.carry = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.lstm, self.out = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        gate = torch.sigmoid(self.carry(x))
        x = gate * F.relu(self.highway(x)) + (1 - gate) * x
        return self.out(self.lstm(x)[0])
