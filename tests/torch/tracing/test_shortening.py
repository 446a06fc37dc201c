"""Batches cut down for tracing: the sequences are found wherever they are, and what forbids a cut is left whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import reprune
from reprune.torch.tracing.running.shortening import SEQUENCES, STEPS, Cut, _holds_packs, _same, shortened


class Tagger(nn.Module):
    """A number for each step; lengths, a state or a name may be given."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 6, batch_first=batch_first, bidirectional=True), nn.Linear(12, 3)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Any, lengths: Any = None, states: Any = None) -> Any:
        self.shapes.append(tuple(x.data.shape))
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, batch_first=self.lstm.batch_first)
        out, states = self.lstm(x, states)
        if lengths is not None:
            out = pad_packed_sequence(out, batch_first=self.lstm.batch_first)[0]
        return out if isinstance(x, tuple) and lengths is None else (self.out(out), states)


class Flat(Tagger):
    """Answers for all steps of all sequences in one row."""

    def forward(self, x: Any) -> Any:
        return super().forward(x)[0].flatten(0, 1)


class Beside(Tagger):
    """Something else is handed in, as long as it likes."""

    def forward(self, x: Any, more: Any) -> Any:
        return super().forward(x)[0] + more.mean()


class Mixing(Tagger):
    """Sequences of a batch see each other."""

    def forward(self, x: Any) -> Any:
        return super().forward(x - x.mean(0))[0]


class Placed(Tagger):
    """Something of its own for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(3 * STEPS, 4))

    def forward(self, x: Any) -> Any:
        return super().forward(x + self.places)[0]


X = torch.randn(20, 30, 4, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.arange(30, 10, -1)
LONG = torch.randn(70, 3 * STEPS, 4)
CASES = {
    "batch first": (Tagger(), X, 0, (SEQUENCES, 30, 4)),
    "time first": (Tagger(False), X, 1, (20, SEQUENCES, 4)),
    "one row": (Flat(), X, 0, (SEQUENCES, 30, 4)),
    "one row, time first": (Flat(False), X, 1, (20, SEQUENCES, 4)),
    "lengths": (Tagger(), (X, LENGTHS), 0, (SEQUENCES, 30, 4)),
    "states": (Tagger(), {"x": X, "states": (torch.randn(2, 20, 6), torch.randn(2, 20, 6))}, 0, (SEQUENCES, 30, 4)),
    "many steps": (Tagger(), LONG, 0, (SEQUENCES, STEPS, 4)),
    "many steps, time first": (Tagger(False), LONG.transpose(0, 1), 1, (STEPS, SEQUENCES, 4)),
    "lengths of many steps": (Tagger(), (LONG, torch.full((70,), 3 * STEPS)), 0, (SEQUENCES, 3 * STEPS, 4)),
    "as many steps as places": (Placed(), LONG, 0, (SEQUENCES, 3 * STEPS, 4)),
    "steps that something else may count": (Beside(), (LONG, torch.ones(3 * STEPS)), 0, (SEQUENCES, 3 * STEPS, 4)),
    "no steps in something else": (Beside(), (LONG, torch.ones(70, 2)), 0, (SEQUENCES, 3 * STEPS, 4)),
    "steps in something else": (Beside(), (LONG, torch.ones(70, 3 * STEPS)), 0, (SEQUENCES, STEPS, 4)),
    "sequences that see each other": (Mixing(), X, None, (20, 30, 4)),
    "few sequences": (Tagger(), X[:4], None, (4, 30, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_of_a_batch(name: str) -> None:
    model, batch, axis, shape = CASES[name]
    few, cut = shortened(model.eval(), batch)
    assert cut == Cut(axis)
    assert (
        next(iter(few.values()) if isinstance(few, dict) else iter([few[0] if isinstance(few, tuple) else few])).shape
        == shape
    )


SEEN: list[tuple[int, ...]] = []


class Seen(Tagger):
    """Tells what it has seen."""

    def forward(self, x: Any) -> Any:
        SEEN.append(tuple(x.data.shape))
        return super().forward(x)[0]


def test_the_model_sees_what_is_left_last() -> None:
    """What it keeps outside of itself is of the shape to be traced."""

    SEEN.clear()
    few, _ = shortened(Seen().eval(), X)
    assert SEEN[-1] == tuple(few.shape)
    SEEN.clear()
    shortened(Seen().eval(), X[:4, :5])
    assert not SEEN


def test_packs_are_left_whole() -> None:
    pack = pack_sequence([torch.randn(9, 4) for _ in range(8)])
    SEEN.clear()
    few, cut = shortened(Seen().eval(), (pack,))
    assert few[0] is pack
    assert cut == Cut()
    assert not SEEN  # Nothing is tried.
    circle: list[Any] = [X]
    circle.append(circle)
    assert not _holds_packs(circle)


def test_sequences_are_from_all_over_the_batch() -> None:
    rows = torch.arange(20.0)[:, None].expand(20, 30)
    assert Cut(0)(rows, 3)[:, 0].tolist() == [0, 9, 19]
    assert Cut(1)((rows, torch.arange(30)), 4)[1].tolist() == [0, 9, 19, 29]
    assert Cut()(rows, 3) is rows
    assert Cut(0)(rows[:2], 3).shape == (2, 30)


def test_what_has_the_axis_elsewhere_hands_over_the_same_entries() -> None:
    data = torch.arange(8.0)[:, None].expand(8, 9).contiguous().requires_grad_()
    states, row, square = torch.arange(8.0).repeat(2, 1), torch.arange(8), torch.arange(64.0).view(8, 8)[:, :, None]
    found = Cut(0)({"x": data, "s": (states, row), "other": [torch.zeros(3), "text", square]}, 3)
    assert found["x"][:, 0].tolist() == [0, 3, 7]
    assert not found["x"].requires_grad
    assert found["s"][0].tolist() == [[0, 3, 7]] * 2
    assert found["s"][1].tolist() == [0, 3, 7]
    assert found["other"][0].shape == (3,)
    assert found["other"][2][:, 0, 0].tolist() == [0, 24, 56]
    assert Cut(1)(square.expand(8, 8, 2), 2)[0, :, 0].tolist() == [0, 7]
    assert Cut(2)(torch.zeros(4, 9), 3).shape == (4, 9)


def test_answers_of_every_second_sequence() -> None:
    """Of five sequences the first, third and fifth, on an axis of their own or several of each side by side."""
    five = torch.arange(5.0)[:, None] * 10 + torch.tensor([1.0, 2.0])
    three = five[::2]
    assert _same(five, three)
    assert _same(five.t(), three.t())
    assert _same(five.long(), three.long())
    assert _same(five + 1e-5 * torch.rand(5, 2), three)
    assert not _same(five, five[:3])
    assert not _same(five.long(), three.long() + 1)
    assert not _same(five, three + 0.1)
    # Both of a sequence next to each other, or one of each and then the others.
    assert _same(five.reshape(10, 1), three.reshape(6, 1))
    assert _same(five.t().reshape(10, 1), three.t().reshape(6, 1))
    assert not _same(five.reshape(10, 1), three.t().reshape(6, 1))
    # Nothing, or something else, is as long as they are.
    for several, few in (
        (three, three),
        (five[:4], three),
        (five, three[:, :1]),
        (five[:, 0], three),
        (five[0, 0], five[0, 0]),
    ):
        assert not _same(several, few)
    assert _same(five[:, :0], three[:, :0])
    assert _same(torch.full((5, 1), torch.inf), torch.full((3, 1), torch.inf))
    assert not _same(torch.full((5, 1), torch.nan), torch.full((3, 1), torch.nan))


class Dies(Tagger):
    """Answers that are no numbers when there are not many steps."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: Any) -> Any:
        return super().forward(x)[0] * (torch.nan if x.size(1) <= self.most else 1)


@pytest.mark.parametrize(
    ("model", "batch", "shape"),
    [
        (Dies(STEPS), LONG[:4], (4, 3 * STEPS, 4)),
        (Tagger(), LONG[:4, : 2 * STEPS], (4, 2 * STEPS, 4)),
        (Tagger(), X[:5], (5, 30, 4)),
        (Tagger(), X[:6], (SEQUENCES, 30, 4)),
    ],
)
def test_how_many_are_too_many(model: nn.Module, batch: torch.Tensor, shape: tuple[int, ...]) -> None:
    assert shortened(model.eval(), batch)[0].shape == shape


def test_nothing_but_the_calibration_runs_on_whole_batches() -> None:
    """Of a long batch, the model sees few sequences before it is observed on all of them."""
    model = Tagger().eval()
    seen: list[tuple[int, ...]] = []
    inspected = reprune.inspect(model, [LONG], forward=lambda net, x: seen.append(tuple(x.shape)) or net(x)[0])
    assert len(inspected.structure.prunable) == 2
    assert seen.count(tuple(LONG.shape)) == 1
    assert {shape for shape in seen if shape[0] > 2 * SEQUENCES} <= {tuple(LONG.shape), (70, STEPS, 4)}
