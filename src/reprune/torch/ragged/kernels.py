"""torch's fused recurrent kernels, and what running a stack of layers piece by piece needs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_KERNELS: dict[str, Any] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
"""How many gate blocks are stacked in `weight_ih`, by mode."""


def run_stack(
    mode: str,
    data: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    bias: bool,
    layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
) -> tuple[Tensor, ...]:
    """Run layers of equal size in one fused call.

    Args:
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
        data: (T, B, F), or (N, F) if packed.
        batch_sizes: (T,) if packed, otherwise None.
        states: `h_0`, and `c_0` for an LSTM, each (layers * directions, B, H).
        weights: The parameters in PyTorch's flat order.
        bias: Whether `weights` holds biases.
        layers: Number of layers.
        dropout: Probability of an element being zeroed between these layers in training.
        training: Whether dropout is active.
        bidirectional: Whether there are two directions.

    Returns:
        The output, then the final states in the form of `states`.
    """
    kernel = _KERNELS[mode]
    hx = list(states) if mode == "LSTM" else states[0]
    options = (bias, layers, dropout, training, bidirectional)
    if batch_sizes is None:
        batch_first = False
        return tuple(kernel(data, hx, list(weights), *options, batch_first))
    return tuple(kernel(data, batch_sizes, hx, list(weights), *options))


def run_wide_projection(
    data: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    bias: bool,
    training: bool,
) -> tuple[Tensor, ...]:
    """Run one LSTM layer and direction that projects to as many components as it has cell units, or more.

    Pruning cell units can lead there. torch's kernel recognises a projection by `h` and `c` differing in size, and
    cuDNN wants the projection to be the smaller one, so the cell is padded with units whose weights are all zero: their
    cell state stays zero and so does what they add to the projection.

    Args:
        data: (T, B, F), or (N, F) if packed.
        batch_sizes: (T,) if packed, otherwise None.
        states: `h_0` (1, B, P) and `c_0` (1, B, H), with P >= H.
        weights: `weight_ih`, `weight_hh`, the biases if any, `weight_hr`.
        bias: Whether `weights` holds biases.
        training: As in `run_stack`.

    Returns:
        The output and the final `h` and `c`, of the sizes that went in.
    """
    h, c = states
    units = c.shape[-1]
    extra = h.shape[-1] + 1 - units
    gated = [
        F.pad(weight.reshape(4, units, *weight.shape[1:]), (0, 0) * (weight.dim() - 1) + (0, extra)).flatten(0, 1)
        for weight in weights[:-1]
    ]
    padded = [*gated, F.pad(weights[-1], (0, extra))]
    output, h, c = run_stack("LSTM", data, batch_sizes, (h, F.pad(c, (0, extra))), padded, bias=bias, training=training)
    return output, h, c[..., :units]


def reversal(batch_sizes: Tensor) -> Tensor:
    """The order that reverses every sequence of a packed batch in time; its own inverse.

    Args:
        batch_sizes: (T,), on the CPU, as a `PackedSequence` holds them.

    Returns:
        Indices (N,) into the packed data.

    Example:
        >>> reversal(torch.tensor([2, 1, 1]))  # sequences of 3 and 1 steps: a0 b0 a1 a2
        tensor([3, 1, 2, 0])
    """
    starts = batch_sizes.cumsum(0) - batch_sizes
    steps = torch.repeat_interleave(torch.arange(len(batch_sizes)), batch_sizes)
    ranks = torch.arange(len(steps)) - starts[steps]
    lengths = torch.bincount(ranks)
    return starts[lengths[ranks] - 1 - steps] + ranks


def reverse(data: Tensor, order: Tensor | None) -> Tensor:
    """Data in reversed time: (T, B, F) if `order` is None, otherwise packed (N, F) in that order of `reversal`."""
    return data.flip(0) if order is None else data.index_select(0, order)


def cell_responses(
    data: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    output: Tensor,
    weights: Sequence[Tensor],
) -> Tensor:
    """What the units of a projected LSTM emit before the projection, `o * tanh(c)`, which the fused kernel hides.

    Args:
        data: The layer's input, (T, B, F), or (N, F) if packed, in the layer's own direction of time.
        batch_sizes: (T,) if packed, otherwise None.
        states: `h_0` (1, B, P) and `c_0` (1, B, H).
        output: The projected output in the layout of `data`.
        weights: `weight_ih`, `weight_hh`, the biases if any, `weight_hr`.

    Returns:
        (T, B, H), or (N, H) if packed.
    """
    incoming, recurrent, *biases, _ = weights
    steps = [data.shape[1]] * data.shape[0] if batch_sizes is None else batch_sizes.tolist()
    gates = F.linear(data, incoming)
    for bias in biases:
        gates = gates + bias
    h, c = states[0][0], states[1][0]
    gates_by_step = torch.split(gates.reshape(-1, gates.shape[-1]), steps)
    output_by_step = torch.split(output.reshape(-1, h.shape[-1]), steps)
    responses = []
    for gate, emitted, size in zip(gates_by_step, output_by_step, steps, strict=True):
        i, f, g, o = (gate + F.linear(h[:size], recurrent)).chunk(4, dim=-1)
        c = f.sigmoid() * c[:size] + i.sigmoid() * g.tanh()
        responses.append(o.sigmoid() * c.tanh())
        h = emitted
    return torch.cat(responses).reshape(*data.shape[:-1], -1)
