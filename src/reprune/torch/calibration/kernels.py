"""Recurrent kernels taken apart: every layer shows what it reads and answers, with the weights that it was handed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from reprune.torch.ragged.kernels import GATES, cell_responses, reversal, reverse


@dataclass(frozen=True)
class Piece:
    """One direction of one layer in one call.

    Attributes:
        weights: `weight_ih`, `weight_hh`, the biases if any, and `weight_hr` of a projection.
        read: What it reads, in the order of time: (T, B, F), or (N, F) if packed.
        response: What it emits, likewise.
        first: `h` (B, H) before its first step; None of a cell, which runs one step at a time.
        last: `h` (B, H) after its last one, likewise.
        inner: What the units of a projected LSTM emit before the projection; None without one.
        batch_sizes: Sequences at every step, if packed.
        memory: `c` (B, H) of an LSTM before its first step, in a sequence.
        backward: Whether it runs from the last step to the first.
    """

    weights: Sequence[torch.Tensor]
    read: torch.Tensor
    response: torch.Tensor
    first: torch.Tensor | None = None
    last: torch.Tensor | None = None
    inner: torch.Tensor | None = None
    batch_sizes: torch.Tensor | None = None
    memory: torch.Tensor | None = None
    backward: bool = False


Show = Callable[[Piece], None]


def run_sequence(name: str, kernel: Callable[..., Any], args: Sequence[Any], show: Show) -> Any:
    """What `kernel(*args)` computes: `torch.lstm`, `torch.gru`, `torch.rnn_tanh` or `torch.rnn_relu`."""
    packed = isinstance(args[3], (list, tuple))
    data, batch_sizes = args[0], args[1] if packed else None
    given, flat, bias, layers, dropout, train, bidirectional, *rest = args[2:] if packed else args[1:]
    swap = bool(rest and rest[0])
    data = data.transpose(0, 1) if swap else data
    states = list(given) if name == "lstm" else [given]
    directions = 2 if bidirectional else 1
    count = len(flat) // (layers * directions)
    ends: list[list[torch.Tensor]] = [[] for _ in states]
    for layer in range(layers):
        if layer and dropout:
            data = F.dropout(data, dropout, train)
        start = layer * directions
        weights = flat[start * count : (start + directions) * count]
        starts = [state[start : start + directions] for state in states]
        form = (data,) if batch_sizes is None else (data, batch_sizes)
        options = (bias, 1, 0.0, train, bidirectional, *([False] if rest else []))
        out, *final = kernel(*form, starts if name == "lstm" else starts[0], weights, *options)
        for direction, emitted in enumerate(out.chunk(directions, -1)):
            own = weights[direction * count : (direction + 1) * count]
            own_starts = [state[direction][None] for state in starts]
            with torch.no_grad():
                inner = _inner(data, batch_sizes, own_starts, emitted, own, direction == 1) if count % 2 else None
            first, last = starts[0][direction], final[0][direction]
            memory = starts[1][direction] if name == "lstm" else None
            show(Piece(own, data, emitted, first, last, inner, batch_sizes, memory, direction == 1))
        for kind, end in zip(ends, final, strict=True):
            kind.append(end)
        data = out
    return (data.transpose(0, 1) if swap else data, *(torch.cat(kind) for kind in ends))


def run_cell(name: str, kernel: Callable[..., Any], args: Sequence[Any], show: Show) -> Any:
    """What `kernel(*args)` computes: `torch.lstm_cell`, `torch.gru_cell` and the like."""
    out = kernel(*args)
    show(Piece([weight for weight in args[2:] if weight is not None], args[0], out[0] if name == "lstm_cell" else out))
    return out


SEQUENCES = frozenset(mode.lower() for mode in GATES)
KERNELS: dict[str, Callable[[str, Callable[..., Any], Sequence[Any], Show], Any]] = {
    **dict.fromkeys(SEQUENCES, run_sequence),
    **{f"{mode.lower()}_cell": run_cell for mode in GATES},
}


def _inner(
    data: torch.Tensor,
    batch_sizes: torch.Tensor | None,
    starts: Sequence[torch.Tensor],
    emitted: torch.Tensor,
    weights: Sequence[torch.Tensor],
    backward: bool,
) -> torch.Tensor:
    """Responses of a projected LSTM's units, in the order of time."""
    if not backward:
        return cell_responses(data, batch_sizes, starts, emitted, weights)
    order = None if batch_sizes is None else reversal(batch_sizes).to(data.device)
    found = cell_responses(reverse(data, order), batch_sizes, starts, reverse(emitted, order), weights)
    return reverse(found, order)
