"""Recurrent kernels taken apart, against cells that step through one sequence after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from reprune.torch.calibration.gates import _steps
from reprune.torch.calibration.kernels import Piece, run_sequence
from reprune.torch.calibration.watch import Seen, watch

LENGTHS = [5, 4, 4, 1]
INPUTS, UNITS, DOUBLE = 3, 4, torch.float64


def step(mode: str, weights: list[torch.Tensor], x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Any:
    """What a cell emits, its memory, and what its units emit before a projection."""
    w_ih, w_hh, *rest = weights
    projection = rest.pop() if len(rest) % 2 else torch.eye(c.shape[-1], dtype=DOUBLE)
    ours, fed = w_ih @ x + (rest[0] if rest else 0), w_hh @ h + (rest[1] if rest else 0)
    if mode == "lstm":
        i, f, g, o = (ours + fed).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        inner = o.sigmoid() * c.tanh()
    elif mode == "gru":
        r, z = (ours + fed).chunk(3)[:2]
        n = (ours.chunk(3)[2] + r.sigmoid() * fed.chunk(3)[2]).tanh()
        inner = (1 - z.sigmoid()) * n + z.sigmoid() * h
    else:
        inner = (ours + fed).tanh() if mode == "rnn_tanh" else (ours + fed).relu()
    return projection @ inner, c, inner


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.fed: list[Any] = []

    def read(self, seen: Seen) -> None:
        self.seen.append(seen)

    def feed_back(self, axis: Any, first: torch.Tensor, last: torch.Tensor) -> None:
        self.fed.append((axis, first, last))


def close(found: Any, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("lstm", "packed", {}),
    ("lstm", "padded", {"bias": False}),
    ("lstm", "batch first", {"bidirectional": True}),
    ("lstm", "packed", {"bidirectional": True, "proj_size": 2}),
    ("lstm", "padded", {"bidirectional": True, "proj_size": 2, "bias": False, "num_layers": 1}),
    ("gru", "packed", {"bidirectional": True, "bias": False}),
    ("gru", "batch first", {}),
    ("rnn_tanh", "packed", {"bidirectional": True}),
    ("rnn_relu", "padded", {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize(("mode", "form", "options"), CALLS, ids=str)
def test_layers_show_what_cells_do_step_by_step(mode: str, form: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    options = {"num_layers": 2} | options
    module = KINDS[mode](INPUTS, UNITS, batch_first=form == "batch first", **options).double()
    layers, directions = module.num_layers, 1 + module.bidirectional
    lengths = LENGTHS if form == "packed" else [5] * 4
    x = torch.randn(5, 4, INPUTS, dtype=DOUBLE)
    h = torch.randn(layers * directions, 4, module.proj_size or UNITS, dtype=DOUBLE)
    c = torch.randn(layers * directions, 4, UNITS, dtype=DOUBLE)
    given = (h, c) if mode == "lstm" else h
    data = {"packed": pack_padded_sequence(x, torch.tensor(LENGTHS)), "padded": x, "batch first": x.transpose(0, 1)}[
        form
    ]

    listener, pieces = Listener(), []
    axes = {(name, 1): weight for name, weight in module.named_parameters() if weight.ndim == 2}
    with torch.no_grad():
        wanted = module(data, given)
        with watch(dict(module.named_parameters()), axes, listener):
            found = module(data, given)
            assert len(listener.seen) == layers * directions * (2 + bool(module.proj_size))
            x @ module.weight_ih_l0.T  # What comes after a kernel is seen, too.
            close(listener.seen.pop().features, x)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        tensors = (data.data, data.batch_sizes) if form == "packed" else (data,)
        rest = () if form == "packed" else (module.batch_first,)
        run_sequence(
            mode, getattr(torch, mode),
            (*tensors, given, module._flat_weights, module.bias, layers, 0.0, False, module.bidirectional, *rest),
            pieces.append,
        )  # fmt: skip

    # Cells, one sequence after the other, layer by layer.
    reads = [x[:length, b] for b, length in enumerate(lengths)]
    count, told, fed = len(module._flat_weights) // (layers * directions), iter(listener.seen), iter(listener.fed)
    names = {id(weight): name for name, weight in module.named_parameters()}
    for layer in range(layers):
        emitted_by_direction = []
        for direction in range(directions):
            place = layer * directions + direction
            weights = module._flat_weights[place * count : (place + 1) * count]
            emitted, inner, states, last = [], [], [], []
            for b, sequence in enumerate(reads):
                state, memory, rows = h[place, b], c[place, b], []
                for row in sequence.flip(0) if direction else sequence:
                    rows.append((state, *step(mode, weights, row, state, memory)))
                    _, state, memory, _ = rows[-1]
                last.append(state)
                before, after, _, units = (torch.stack(part).detach() for part in zip(*rows, strict=True))
                states.append(before)
                emitted.append(after.flip(0) if direction else after)
                inner.append(units.flip(0) if direction else units)
            emitted_by_direction.append(emitted)

            def rows_of(sequences: list[torch.Tensor]) -> torch.Tensor:
                """In the order of the kernel: step by step, all sequences that are as long."""
                return torch.stack([s[t] for t in range(5) for s in sequences if t < len(s)])

            def laid(sequences: list[torch.Tensor]) -> torch.Tensor:
                return rows_of(sequences) if form == "packed" else torch.stack(sequences, 1)

            piece: Piece = pieces[place]
            assert all(one is other for one, other in zip(piece.weights, weights, strict=True))
            close(piece.read, laid(reads))
            close(piece.response, laid(emitted))
            close(piece.first, h[place])
            close(piece.last, torch.stack(last).detach())
            assert piece.backward == bool(direction)
            assert piece.batch_sizes is (data.batch_sizes if form == "packed" else None)
            if mode == "lstm":
                close(piece.memory, c[place])
            else:
                assert piece.memory is None
            if module.proj_size:
                close(piece.inner, laid(inner))
            else:
                assert piece.inner is None
                steps = _steps(piece)  # What the regressions of gates are made of, in the layer's own direction.
                close(steps.read, rows_of([s.flip(0) if direction else s for s in reads]))
                close(steps.state, rows_of(states))
                assert list(steps.sizes) == [sum(length > t for length in lengths) for t in range(5)]
                assert (steps.memory is None) == (piece.memory is None)

            shown = [(weights[0], laid(reads), False), (weights[1], laid(emitted), True)]
            for weight, features, answers in [*shown, (weights[-1], laid(inner), True)][: 2 + bool(module.proj_size)]:
                seen = next(told)
                assert (seen.axis, seen.first, seen.answers) == ((names[id(weight)], 1), 0, answers)
                assert seen.batch_sizes is piece.batch_sizes
                close(seen.features, features)
            axis, first, after = next(fed)
            assert axis == (names[id(weights[1])], 1)
            close(first, piece.first)
            close(after, piece.last)
        reads = [torch.cat(parts, -1) for parts in zip(*emitted_by_direction, strict=True)]
    assert len(pieces) == layers * directions
    assert not [*told, *fed]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_show_what_they_read_and_answer(kind: type[nn.Module], bias: bool) -> None:
    torch.manual_seed(0)
    cell, x, h, listener = kind(INPUTS, UNITS, bias), torch.randn(2, INPUTS), torch.randn(2, UNITS), Listener()
    given = (h, 2 * h) if kind is nn.LSTMCell else h
    wanted = cell(x, given)
    with watch(dict(cell.named_parameters()), [("weight_ih", 1), ("weight_hh", 1)], listener):
        found = cell(x, given)
    torch.testing.assert_close(found, wanted)
    response = wanted[0] if kind is nn.LSTMCell else wanted
    for seen, name, features in zip(listener.seen, ("weight_ih", "weight_hh"), (x, response), strict=True):
        assert (seen.axis, seen.answers, seen.batch_sizes) == ((name, 1), name == "weight_hh", None)
        assert torch.equal(seen.features, features)
        assert not seen.features.requires_grad
    assert not listener.fed  # The last state is not known to be the last.
