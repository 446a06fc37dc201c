"""Cells written out with layers and elementwise gates."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.helpers.torch_zoo.case import case, tokens

State = tuple[torch.Tensor, torch.Tensor]


@case()
class WrittenRnn(nn.Module):
    """The tutorial's cell: a layer on input and state side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 8
        self.i2h, self.i2o = nn.Linear(5 + 8, 8), nn.Linear(5 + 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(x.size(0), self.hidden_size, dtype=x.dtype, device=x.device)
        found = []
        for step in x.unbind(1):
            both = torch.cat((step, h), 1)
            h = torch.tanh(self.i2h(both))
            found.append(self.i2o(both))
        return torch.stack(found, 1)


class WrittenLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = 8
        self.x2h, self.h2h = nn.Linear(5, 32), nn.Linear(8, 32)
        self.out = nn.Linear(8, 3)

    def gates(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        i, f, g, o = (self.x2h(x) + self.h2h(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c = x.new_zeros(x.size(0), self.hidden), x.new_zeros(x.size(0), self.hidden)
        for step in x.unbind(1):
            h, c = self.gates(step, h, c)
        return self.out(h)


case("written_lstm")(WrittenLstm)


@case("sliced_weight", "slices")
@case("split_weight", "split")
class OneWeight(nn.Module):
    """One weight for input and state, of which each is multiplied with its columns."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.weight, self.bias = nn.Parameter(torch.randn(32, 5 + 8) / 3), nn.Parameter(torch.randn(32))
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = c = x.new_zeros(x.size(0), len(self.weight) // 4)
        for step in x.unbind(1):
            if self.way == "split":
                of_input, of_state = self.weight.split([5, self.weight.size(1) - 5], 1)
            else:
                of_input, of_state = self.weight[:, :5], self.weight[:, 5:]
            i, f, g, o = (F.linear(step, of_input, self.bias) + h @ of_state.t()).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.out(h)


@case()
class Peephole(WrittenLstm):
    """Gates that look at the cell through one weight per unit."""

    def __init__(self) -> None:
        super().__init__()
        self.peep_i, self.peep_f, self.peep_o = (nn.Parameter(torch.randn(8)) for _ in range(3))

    def gates(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        i, f, g, o = (self.x2h(x) + self.h2h(h)).chunk(4, 1)
        i, f = torch.sigmoid(i + self.peep_i * c), torch.sigmoid(f + self.peep_f * c)
        c = f * c + i * torch.tanh(g)
        return torch.sigmoid(o + self.peep_o * c) * torch.tanh(c), c


@case(approximate=True)
class LayerNormLstm(WrittenLstm):
    """Layer normalisation of all gates together and of the cell."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_x, self.norm_h, self.norm_c = nn.LayerNorm(32), nn.LayerNorm(32), nn.LayerNorm(8)

    def gates(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        i, f, g, o = (self.norm_x(self.x2h(x)) + self.norm_h(self.h2h(h))).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.norm_c(c)), c


@case()
class WrittenGru(nn.Module):
    """One layer per gate, parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.wz, self.wr, self.wn = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 8)
        self.uz, self.ur, self.un = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = None
        for step in x.unbind(1):
            h = step.new_zeros(step.size(0), self.uz.in_features) if h is None else h
            z, r = torch.sigmoid(self.wz(step) + self.uz(h)), torch.sigmoid(self.wr(step) + self.ur(h))
            n = torch.tanh(self.wn(step) + self.un(r * h))
            h = (1 - z) * n + z * h
        return self.out(h)


@case()
class BareParameters(nn.Module):
    """Matrices as bare parameters, `x @ w + h @ u + b`, sliced by gate."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 8
        self.w, self.u = nn.Parameter(torch.randn(5, 32) / 3), nn.Parameter(torch.randn(8, 32) / 3)
        self.b, self.out = nn.Parameter(torch.randn(32)), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.hidden_size
        h = c = torch.zeros(x.size(0), n, dtype=x.dtype, device=x.device)
        for t in range(x.size(1)):
            gates = x[:, t] @ self.w + h @ self.u + self.b
            i, f = torch.sigmoid(gates[:, :n]), torch.sigmoid(gates[:, n : n * 2])
            g, o = torch.tanh(gates[:, n * 2 : n * 3]), torch.sigmoid(gates[:, n * 3 :])
            c = f * c + i * g
            h = o * torch.tanh(c)
        return self.out(h)


@case(batch=tokens)
class RecurrentHighway(nn.Module):
    """A recurrent highway network: several highway layers within one step."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.x2h, self.x2t = nn.Linear(5, 8), nn.Linear(5, 8)
        self.h2h = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.h2t = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.out = nn.Linear(8, 11)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        s = torch.zeros(
            words.size(0), self.x2h.out_features, dtype=self.out.weight.dtype, device=self.out.weight.device
        )
        found = []
        for x in self.embedding(words).unbind(1):
            for depth, (hidden, transform) in enumerate(zip(self.h2h, self.h2t, strict=True)):
                h, t = hidden(s), transform(s)
                if depth == 0:
                    h, t = h + self.x2h(x), t + self.x2t(x)
                t = torch.sigmoid(t)
                s = torch.tanh(h) * t + s * (1 - t)
            found.append(self.out(s))
        return torch.stack(found, 1)


@case()
class WrittenStack(nn.Module):
    """Two written cells, one above the other, as modules of their own."""

    class Cell(nn.Module):
        def __init__(self, inputs: int, units: int) -> None:
            super().__init__()
            self.units = units
            self.gates = nn.Linear(inputs + units, 4 * units)

        def forward(
            self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if state is None:
                state = x.new_zeros(x.size(0), self.units), x.new_zeros(x.size(0), self.units)
            h, c = state
            i, f, g, o = self.gates(torch.cat([x, h], -1)).split(self.units, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = self.Cell(5, 8), self.Cell(8, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = b = None
        for step in x.unbind(1):
            a = self.one(step, a)
            b = self.two(a[0], b)
        return self.out(b[0])


@case()
class ConvolutionalLstm(nn.Module):
    """A convolutional LSTM: the units are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 6
        self.gates, self.out = nn.Conv1d(1 + 6, 24, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = c = torch.zeros(x.size(0), self.channels, x.size(2), dtype=x.dtype, device=x.device)
        for step in x.unbind(1):
            i, f, o, g = torch.split(self.gates(torch.cat([step.unsqueeze(1), h], 1)), self.channels, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(F.adaptive_avg_pool1d(h, 1).squeeze(-1))


@case()
class ChildSum(nn.Module):
    """A child-sum tree over the frames: every node adds its children's states."""

    def __init__(self) -> None:
        super().__init__()
        self.units = 8
        self.ioux, self.iouh = nn.Linear(5, 24), nn.Linear(8, 24)
        self.fx, self.fh, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def node(
        self, x: torch.Tensor, children: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hs = torch.stack([h for h, _ in children]) if children else x.new_zeros(1, x.size(0), self.units)
        cs = torch.stack([c for _, c in children]) if children else x.new_zeros(1, x.size(0), self.units)
        i, o, u = (self.ioux(x) + self.iouh(hs.sum(0))).chunk(3, -1)
        f = torch.sigmoid(self.fh(hs) + self.fx(x))
        c = torch.sigmoid(i) * torch.tanh(u) + (f * cs).sum(0)
        return torch.sigmoid(o) * torch.tanh(c), c

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        nodes = [self.node(step, []) for step in x.unbind(1)]
        while len(nodes) > 1:
            pairs = [nodes[k : k + 2] for k in range(0, len(nodes), 2)]
            nodes = [self.node(x[:, 0], pair) for pair in pairs]
        return self.out(nodes[0][0])
