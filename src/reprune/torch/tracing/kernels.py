"""Rules of the recurrent kernels: `torch.lstm`, `torch.gru_cell` and the like, which hold the units themselves."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reprune.core.layers import Role
from reprune.torch.tracing.labels import NONE, TAG, Ids, lines, storage_id
from reprune.torch.tracing.recording import Product, RecurrentLayer, State
from reprune.torch.tracing.tracer import Tracer

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_WEIGHT = re.compile(r"(?:(?P<module>.*)\.)?(?:[^.]*?)weight_ih_?(?P<suffix>l\d+(?:_reverse)?)?[^.]*$")


@dataclass
class _Piece:
    """One direction of one layer: its weights, and labels of its cell's and its output's units."""

    layer: RecurrentLayer
    projected: RecurrentLayer | None
    weights: Sequence[torch.Tensor]

    @property
    def output(self) -> RecurrentLayer:
        return self.projected or self.layer


def trace_sequence(cell: str) -> Callable[[Tracer, Sequence[Any], Any], None]:
    """Rule of a kernel that runs a whole sequence through a stack of layers."""

    def rule(tracer: Tracer, args: Sequence[Any], out: Any) -> None:
        packed = isinstance(args[3], (list, tuple))
        data = args[0]
        hx, weights, has_biases, num_layers, _, _, bidirectional = args[2:9] if packed else args[1:8]
        states = list(hx) if cell == "lstm" else [hx]
        directions = 2 if bidirectional else 1
        per_piece = len(weights) // (num_layers * directions)
        steps = data.numel() // data.shape[-1]
        pieces = []
        below = _feature_lines(tracer, data)
        for level in range(num_layers):
            row = []
            for direction in range(directions):
                start = (level * directions + direction) * per_piece
                piece = _piece(tracer, cell, weights[start : start + per_piece], bool(has_biases))
                _connect(tracer, piece, cell, data if level == 0 else None, below, steps)
                row.append(piece)
            pieces += row
            below = [np.concatenate([piece.output.emitted for piece in row])]
        _initial_states(tracer, pieces, states)
        _outputs(tracer, pieces, out, directions)

    return rule


def trace_cell(cell: str) -> Callable[[Tracer, Sequence[Any], Any], None]:
    """Rule of a kernel that runs one step of one layer."""

    def rule(tracer: Tracer, args: Sequence[Any], out: Any) -> None:
        data, hx = args[0], args[1]
        weights = [weight for weight in args[2:] if weight is not None]
        piece = _piece(tracer, cell, weights, len(weights) == 4)
        _connect(tracer, piece, cell, data, _feature_lines(tracer, data), data.numel() // data.shape[-1])
        states = list(hx) if cell == "lstm" else [hx]
        _initial_states(tracer, [piece], [state.unsqueeze(0) for state in states])
        for state in out if cell == "lstm" else [out]:
            tracer.memory.set(state, _spread(piece.layer.emitted, state))
            tracer.states[storage_id(state)] = State([piece.layer.name], state.ndim)

    return rule


KERNELS: dict[str, Callable[[Tracer, Sequence[Any], Any], None]] = {
    **{cell: trace_sequence(cell) for cell in GATES},
    **{f"{cell}_cell": trace_cell(cell) for cell in GATES},
}


def _piece(tracer: Tracer, cell: str, weights: Sequence[torch.Tensor], has_biases: bool) -> _Piece:
    found = tracer.weight_lines(weights[0], 0, "own")
    name = found[0][0][0] if found else None
    match = _WEIGHT.match(name) if name else None
    module = (match["module"] or "") if match else f"unnamed{len(tracer.recording.layers)}"
    address = f"{module}:{(match and match['suffix']) or 'l0'}"
    layers = tracer.recording.layers
    units = weights[0].shape[0] // GATES[cell]
    if address not in layers:
        kind = "rnn" if cell.startswith("rnn") else cell
        layers[address] = RecurrentLayer(address, kind, module, tracer.recording.couplings.new(units))
    layer, projected = layers[address], None
    if len(weights) % 2:
        address += ":projection"
        if address not in layers:
            labels = tracer.recording.couplings.new(weights[-1].shape[0])
            layers[address] = RecurrentLayer(address, "projection", module, labels)
        projected = layers[address]
    return _Piece(layer, projected, weights)


def _connect(
    tracer: Tracer, piece: _Piece, cell: str, data: torch.Tensor | None, below: Sequence[Ids], steps: int
) -> None:
    """Label the axes of the piece's weights, and record its matrix products."""
    gates = np.tile(piece.layer.labels, GATES[cell])
    name = piece.layer.name
    w_ih, w_hh = piece.weights[0], piece.weights[1]
    biases = [b for b in piece.weights[2:] if b.ndim == 1]
    for weight in (w_ih, w_hh, *biases):
        _label(tracer, weight, 0, gates, "own", name)
    _label(tracer, w_hh, 1, piece.output.labels, "reads", name)
    inputs = tracer.weight_lines(w_ih, 1, "reads")
    for (_, line), feature in ((one, two) for one in inputs for two in below):
        tracer.couple_lines(line, feature)
    if data is not None:
        for (reader, _), line in inputs:
            tracer.origins.meet("read", tracer.origin(data), line, reader)
    for weight, bias in zip((w_ih, w_hh), biases or (None, None), strict=True):
        _consumer(tracer, weight, bias)
    feature = inputs[0][1] if inputs else np.zeros(w_ih.shape[1], dtype=np.int64)
    products = tracer.recording.products
    products += [Product(steps, (gates, feature)), Product(steps, (gates, piece.output.labels))]
    if piece.projected is not None:
        w_hr = piece.weights[-1]
        _label(tracer, w_hr, 0, piece.projected.labels, "own", name)
        _label(tracer, w_hr, 1, piece.layer.labels, "reads", name)
        _consumer(tracer, w_hr, None)
        products.append(Product(steps, (piece.projected.labels, piece.layer.labels)))
    tracer.recording.steps[name] = tracer.recording.steps.get(name, 0) + steps


def _label(tracer: Tracer, weight: torch.Tensor, dim: int, labels: Ids, role: Role, layer: str) -> None:
    owner = tracer.owner(weight)
    if owner is not None and tracer.tensors[owner].shape == weight.shape:
        tracer.set_axis(owner, dim, labels, role)
        return
    found = tracer.weight_lines(weight, dim, role)
    for _, line in found:
        tracer.couple_lines(line, labels)
    if not found:
        ids = torch.from_numpy(labels)
        tracer.pin(ids, f"weights of {layer}", "its weights are computed in a way that was not understood")


def _consumer(tracer: Tracer, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    bias_name = tracer.owner(bias) if bias is not None else None
    for axis, _ in tracer.weight_lines(weight, 1, "reads"):
        tracer.recording.takes_bias(axis, bias_name)


def _feature_lines(tracer: Tracer, data: torch.Tensor) -> list[Ids]:
    labels = tracer.units(data)
    if labels is not None:
        return list(lines(labels, -1))
    if tracer.is_weight(data):
        return [line for _, line in tracer.weight_lines(data, -1, "follows")]
    return []


def _initial_states(tracer: Tracer, pieces: Sequence[_Piece], states: Sequence[torch.Tensor]) -> None:
    """Couple the units of given states with those of the layers that take them."""
    for index, state in enumerate(states):
        if tracer.is_own_zeros(state):
            continue
        origins = tracer.origin(state)
        labels = tracer.units(state)
        for k, piece in enumerate(pieces):
            layer = piece.output if index == 0 else piece.layer
            alone = len(state) == 1 and tracer.is_weight(state)
            learned = tracer.weight_lines(state[k], -1, "follows") if alone else []
            for _, line in learned:
                tracer.couple_lines(line, layer.labels)
            if origins is not None:
                tracer.origins.meet("state", origins[k], layer.labels)
            given = lines(labels[k], -1) if labels is not None else np.zeros((0, 0), dtype=np.int64)
            if labels is not None:
                _fixed_part(tracer, layer, labels[k], None if origins is None else origins[k])
            for line in given:
                for tag in np.unique(line[line >= TAG]):
                    tracer.constrain(tracer.tags[tag - TAG], layer.labels[line == tag], hard=False)
                tracer.couple_lines(np.where(line < TAG, line, NONE), layer.labels)
            unknown = not len(given) or bool(((given == NONE) | (given >= TAG)).any())
            # What came from outside the call may be a carried state; it is judged when all calls are over.
            if unknown and not learned and origins is None:
                tracer.recording.outside_states.add(layer.name)


def _fixed_part(tracer: Tracer, layer: RecurrentLayer, units: torch.Tensor, origins: torch.Tensor | None) -> None:
    """An initial state is as wide as its units and what stands beside them: noise of a size of its own, say."""
    known = units > NONE if origins is None else (units > NONE) | (origins != NONE)
    followed = known.reshape(-1, known.size(-1)).any(0)
    if bool(followed.any()) and not bool(followed.all()):
        reason = "its initial state is joined of units and of something whose size does not follow"
        tracer.pin(torch.from_numpy(layer.labels), "initial state", reason)


def _outputs(tracer: Tracer, pieces: Sequence[_Piece], out: Sequence[torch.Tensor], directions: int) -> None:
    output, *finals = out
    last = np.concatenate([piece.output.emitted for piece in pieces[-directions:]])
    tracer.memory.set(output, _spread(last, output))
    for index, state in enumerate(finals):
        layers = [piece.output if index == 0 else piece.layer for piece in pieces]
        stacked = torch.from_numpy(np.stack([layer.emitted for layer in layers])).to(state.device)
        tracer.memory.set(state, stacked[:, None, :].expand(state.shape))
        tracer.states[storage_id(state)] = State([layer.name for layer in layers], state.ndim)


def _spread(labels: Ids, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(labels).to(like.device).expand(like.shape)
