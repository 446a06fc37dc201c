"""Random models that carry states, in random forms: pruned must equal masked, step after step on its own states.

`REPRUNE_FUZZ=5000 pytest tests/torch/tracing/test_random_streams.py` runs that many examples.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reprune.torch
from reprune.torch.tracing.leaves import leaves
from tests.helpers.torch_oracle import assert_close, prepared, random_plans

EXAMPLES = int(os.environ.get("REPRUNE_FUZZ", "40"))
CELLS = ("lstm_cell", "gru_cell", "rnn_cell", "lstm", "gru", "gru2", "written_lstm", "written_gru", "elman")
INWARD = ("plain", "masked", "scaled", "normed", "read", "blended")
FORMS = ("arguments", "tuple", "list", "dict", "stack0", "stack1", "beside", "turned", "one_each")
WAYS = ("given", "left_out", "kept", "kept_list")


class Cell(nn.Module):
    """One recurrent piece on one frame: `(x, states) -> (y, states)`, every state (B, units)."""

    def __init__(self, kind: str, read: int, units: int) -> None:
        super().__init__()
        self.kind, self.n = kind, units
        self.count = 2 if "lstm" in kind or kind == "gru2" else 1
        if kind == "written_lstm":
            self.gates = nn.Linear(read + units, 4 * units)
        elif kind == "written_gru":
            self.x, self.h, self.new = nn.Linear(read, 3 * units), nn.Linear(units, 2 * units), nn.Linear(units, units)
        elif kind == "elman":
            self.x, self.h = nn.Linear(read, units), nn.Linear(units, units, bias=False)
        else:
            made = {"lstm_cell": nn.LSTMCell, "gru_cell": nn.GRUCell, "rnn_cell": nn.RNNCell, "lstm": nn.LSTM}
            self.rnn = nn.GRU(read, units, 2) if kind == "gru2" else made.get(kind, nn.GRU)(read, units)

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return getattr(self, f"_{self.kind}")(x, states)

    def _lstm_cell(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        h, c = self.rnn(x, tuple(states))
        return h, [h, c]

    def _gru_cell(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        h = self.rnn(x, states[0])
        return h, [h]

    _rnn_cell = _gru_cell

    def _lstm(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, (h, c) = self.rnn(x[None], (states[0][None], states[1][None]))
        return y[0], [h[0], c[0]]

    def _gru(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, h = self.rnn(x[None], torch.stack(states))
        return y[0], list(h)

    _gru2 = _gru

    def _written_lstm(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        i, f, g, o = self.gates(torch.cat([x, states[0]], 1)).chunk(4, 1)
        c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, [h, c]

    def _written_gru(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        h = states[0]
        xr, xz, xn = self.x(x).chunk(3, 1)
        r, z = (self.h(h) + torch.cat([xr, xz], 1)).sigmoid().chunk(2, 1)
        h = (1 - z) * torch.tanh(xn + r * self.new(h)) + z * h
        return h, [h]

    def _elman(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        h = torch.tanh(self.x(x) + self.h(states[0]))
        return h, [h]


class RandomStream(nn.Module):
    """A chain of cells and the form in which their states come and go."""

    def __init__(self, cells: list[tuple[str, str]], form: str, way: str, units: list[int], detach: bool) -> None:
        super().__init__()
        self.form, self.way, self.detach = form, way, detach
        self.cells, self.inward, read = nn.ModuleList(), nn.ModuleList(), 5
        self.hows = [how for _, how in cells]
        for (kind, how), n in zip(cells, units, strict=False):
            self.cells.append(Cell(kind, read, n))
            self.inward.append(nn.BatchNorm1d(n) if how == "normed" else nn.Linear(n, read) if how == "read" else None)
            read = n
        self.out = nn.Linear(read, 3)
        self.kept: Any = [] if way == "kept_list" else None

    @property
    def widths(self) -> list[int]:
        return [cell.n for cell in self.cells for _ in range(cell.count)]

    def packed(self, states: list[Tensor]) -> Any:
        make = {
            "tuple": lambda: (tuple(states),), "list": lambda: (states,), "arguments": lambda: tuple(states),
            "dict": lambda: ({f"s{k}": state for k, state in enumerate(states)},),
            "stack0": lambda: (torch.stack(states),), "stack1": lambda: (torch.stack(states, 1),),
            "beside": lambda: (torch.cat(states, 1),), "turned": lambda: (torch.cat(states, 1).t(),),
            "one_each": lambda: ([[state.unsqueeze(1)] for state in states],),
        }  # fmt: skip
        return make[self.form]()

    def unpacked(self, given: tuple[Any, ...]) -> list[Tensor]:
        if self.form == "arguments":
            return list(given)
        held = given[0]
        if self.form == "dict":
            return list(held.values())
        if self.form in ("stack0", "stack1"):
            return list(held.unbind(0 if self.form == "stack0" else 1))
        if self.form in ("beside", "turned"):
            held = held.t() if self.form == "turned" else held
            sizes = [cell.n for cell in self.cells for _ in range(cell.count)]
            return list(held.split(sizes, 1))
        return [state[0].squeeze(1) for state in held] if self.form == "one_each" else list(held)

    def zeros(self, x: Tensor) -> list[Tensor]:
        return [torch.zeros(len(x), cell.n, dtype=x.dtype) for cell in self.cells for _ in range(cell.count)]

    def forward(self, x: Tensor, *given: Any) -> Any:
        return self.step(x, given)

    def step(self, x: Tensor, given: tuple[Any, ...]) -> Any:
        if self.way.startswith("kept"):
            given = tuple(self.kept or ())
        empty = not given or given[0] is None
        states = self.zeros(x) if empty else self.unpacked(given)
        y, new = x, []
        for cell, how, inward in zip(self.cells, self.hows, self.inward, strict=True):
            mine, states = states[: cell.count], states[cell.count :]
            y, found = self.one(cell, how, inward, y, mine, x)
            new += [state.detach() for state in found] if self.detach else found
        if self.way.startswith("kept"):
            self.kept = list(self.packed(new)) if self.way == "kept_list" else self.packed(new)
            return self.out(y)
        return self.out(y), *self.packed(new)

    def one(
        self, cell: Any, how: str, inward: Any, y: Tensor, mine: list[Tensor], x: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        if how == "masked":
            mine = [state * (x[:, :1] > 0) for state in mine]
        elif how == "scaled":
            mine = [0.5 * torch.relu(state) for state in mine]
        elif how == "normed":
            mine = [inward(mine[0]), *mine[1:]]
        elif how == "read":
            y = y + torch.tanh(inward(mine[0]))
        found = cell(y, mine)
        if how == "blended":
            keep = torch.sigmoid(x[:, :1])
            return found[0], [keep * one + (1 - keep) * two for one, two in zip(mine, found[1], strict=True)]
        return found


class LeftOutStream(RandomStream):
    def forward(self, x: Tensor, s: Any = None) -> Any:  # type: ignore[override]
        return self.step(x, () if s is None else (s,))


def check(cells: list[tuple[str, str]], form: str, way: str, units: list[int], detach: bool, seed: int) -> None:
    if form in ("stack0", "stack1"):
        units = [units[0]] * len(units)
    if way == "left_out" and form == "arguments":
        form = "tuple"
    torch.manual_seed(seed)
    kind = LeftOutStream if way == "left_out" else RandomStream
    model = prepared(kind(cells, form, way, units, detach).double(), train=False)
    starts = [torch.randn(4, n, dtype=torch.float64) for n in model.widths]
    first = model.packed(starts) if way == "given" else ()
    x = torch.randn(4, 5, dtype=torch.float64)
    structure = reprune.torch.inspect(model, [(x, *first)]).structure
    assert len(structure.prunable) == sum(2 if kind == "gru2" else 1 for kind, _ in cells), structure
    for name, layer in structure.layers.items():
        # The input that a state is added to goes round with it.
        assert layer.pin is None or "an input of the model" in layer.pin.reason, f"{name}: {layer.pin}"
    plan = random_plans(structure, seed % 3 + 1)[-1]
    small, masked = reprune.torch.apply(model, plan), reprune.torch.mask(model, plan)
    ours, theirs = first, first
    for step in range(3):
        x = torch.randn(4, 5, dtype=torch.float64)
        one, two = small(x, *ours), masked(x, *theirs)
        if way.startswith("kept"):
            one, two = (one,), (two,)
        assert_close(one[0], two[0], f"answer of step {step}")
        ours, theirs = one[1:], two[1:]
    if not way.startswith("kept"):
        pairs = zip(leaves(ours), leaves(theirs), strict=True)
        assert all(a.numel() < b.numel() for (_, a), (_, b) in pairs)


@pytest.mark.timeout(20000)
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize="REPRUNE_FUZZ" not in os.environ, print_blob=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(
    st.lists(st.tuples(st.sampled_from(CELLS), st.sampled_from(INWARD)), min_size=1, max_size=3),
    st.sampled_from(FORMS),
    st.sampled_from(WAYS),
    st.lists(st.integers(6, 9), min_size=3, max_size=3),
    st.booleans(),
    st.integers(0, 10**6),
)
@example([("lstm_cell", "read"), ("written_lstm", "plain")], "stack0", "left_out", [6, 6, 6], False, 0)
def test_random_streams(
    cells: list[tuple[str, str]], form: str, way: str, units: list[int], detach: bool, seed: int
) -> None:
    check(cells, form, way, units, detach, seed)
