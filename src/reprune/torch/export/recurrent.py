"""For export: recurrent modules that call ONNX's own operators, one per layer, or one per direction if these differ.

torch's exporters unroll a GRU over the example's time steps and know no packed sequences. Here each module of a copy of
the model gets a `forward` of the same signature that calls `reprune::lstm`, `reprune::gru` or `reprune::rnn`, which
mirror the operators of the ONNX standard and pass through every exporter untouched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from reprune.torch.export.packed import lengths_of
from reprune.torch.ragged.modules import RaggedGRU, RaggedLSTM, RaggedRNN

_Maybe = Tensor | None
RAGGED = (RaggedLSTM, RaggedGRU, RaggedRNN)
_PLAIN = (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)
# Gate blocks in ONNX's order, as positions in PyTorch's.
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}

_ARGUMENTS = "Tensor x, Tensor w, Tensor r, Tensor? b, Tensor? lengths, Tensor? h"
_fake: Callable[[str], Callable[[Callable[..., Any]], Callable[..., Any]]] = torch.library.register_fake
torch.library.define("reprune::lstm", f"({_ARGUMENTS}, Tensor? c, str direction) -> (Tensor, Tensor, Tensor)")
torch.library.define("reprune::gru", f"({_ARGUMENTS}, str direction) -> (Tensor, Tensor)")
torch.library.define("reprune::rnn", f"({_ARGUMENTS}, str direction, str activation) -> (Tensor, Tensor)")


def _shapes(x: Tensor, w: Tensor, r: Tensor, *states: _Maybe) -> tuple[Tensor, Tensor]:
    directions, units = w.shape[0], r.shape[2]
    # Comparing tells the exporter which sizes are not free.
    fits = x.shape[2] == w.shape[2] and all(
        state.shape[1] == x.shape[1] and state.shape[2] == units for state in states if state is not None
    )
    if not fits:
        raise RuntimeError(f"input {tuple(x.shape)} or state does not fit weights {tuple(w.shape)}, {tuple(r.shape)}")
    return x.new_empty(x.shape[0], directions, x.shape[1], units), x.new_empty(directions, x.shape[1], units)


@_fake("reprune::lstm")
def _lstm(
    x: Tensor, w: Tensor, r: Tensor, b: _Maybe, lengths: _Maybe, h: _Maybe, c: _Maybe, direction: str
) -> tuple[Tensor, Tensor, Tensor]:
    output, state = _shapes(x, w, r, h, c)
    return output, state, torch.empty_like(state)


@_fake("reprune::gru")
def _gru(
    x: Tensor, w: Tensor, r: Tensor, b: _Maybe, lengths: _Maybe, h: _Maybe, direction: str
) -> tuple[Tensor, Tensor]:
    return _shapes(x, w, r, h)


@_fake("reprune::rnn")
def _rnn(
    x: Tensor, w: Tensor, r: Tensor, b: _Maybe, lengths: _Maybe, h: _Maybe, direction: str, activation: str
) -> tuple[Tensor, Tensor]:
    return _shapes(x, w, r, h)


class Seen:
    """What the recurrent modules met while the model was traced.

    Attributes:
        packed: Whether any read a packed sequence.
        loops: How often cells were called, which is the number of steps of an unrolled loop.
    """

    def __init__(self) -> None:
        self._axes: list[tuple[torch.SymInt, str]] = []
        self.packed = False
        self.loops: Counter[str] = Counter()

    @property
    def axes(self) -> dict[Any, str]:
        """What every size that is free means (`time`, `batch`), by the expression that the trace has for it by now."""
        found: dict[Any, str] = {}
        for size, name in self._axes:
            found.setdefault(size.node.expr, name)
        return found

    def name(self, size: Any, name: str) -> None:
        """Note what a size means."""
        if not isinstance(size, int):
            self._axes.append((size, name))

    def read(self, data: Tensor) -> None:
        """Note the sizes of (T, B, F) data."""
        self.name(data.shape[0], "time")
        self.name(data.shape[1], "batch")


def recurrent_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path and module of everything that `replace_forwards` replaces."""
    for path, module in model.named_modules():
        if isinstance(module, RAGGED) or (isinstance(module, nn.RNNBase) and type(module).forward in _PLAIN):
            yield path, module


def replace_forwards(model: nn.Module) -> Seen:
    """Give every recurrent module of a model, which is changed, a `forward` made of ONNX's operators."""
    seen = Seen()
    watch_cells(model, seen)
    for path, module in list(recurrent_modules(model)):
        # On the instance, so that hooks and attributes that the code around it reads stay.
        module.forward = _Forward(path, module, seen).run
    return seen


def watch_cells(model: nn.Module, seen: Seen) -> None:
    """Note the batches that cells in loops meet; the model gets hooks."""

    def watch(path: str) -> Callable[..., None]:
        def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            data = args[0] if args else kwargs["input"]
            seen.loops[path] += 1
            if data.dim() == 2:
                seen.name(data.shape[0], "batch")

        return note

    for path, module in model.named_modules():
        if isinstance(module, nn.RNNCellBase):
            module.register_forward_pre_hook(watch(path), with_kwargs=True)


def watch_forwards(model: nn.Module) -> Seen:
    """Note the sizes that recurrent modules meet, and change nothing; the model gets hooks."""
    seen = Seen()

    def watch(path: str) -> Callable[..., None]:
        def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            data = args[0] if args else kwargs["input"]
            if isinstance(data, Tensor) and data.dim() == 3:
                seen.read(data.transpose(0, 1) if module.batch_first else data)

        return note

    watch_cells(model, seen)
    for path, module in recurrent_modules(model):
        module.register_forward_pre_hook(watch(path), with_kwargs=True)
    return seen


class _Call:
    """One operator: a layer with both its directions, or one direction of it; its weights are buffers of the module."""

    def __init__(self, module: Any, layer: int, directions: list[int]) -> None:
        self.name = f"onnx_l{layer}" + "_reverse" * (directions == [1])
        self.directions = directions
        self.first = layer * (2 if module.bidirectional else 1) + directions[0]
        suffixes = [f"l{layer}" + "_reverse" * direction for direction in directions]
        order = _GATES[module.mode]

        def reordered(kind: str) -> list[Tensor]:
            tensors = [getattr(module, f"{kind}_{suffix}").detach() for suffix in suffixes]
            return [torch.cat([tensor.chunk(len(order))[gate] for gate in order]) for tensor in tensors]

        recurrent = reordered("weight_hh")
        self.projected = hasattr(module, f"weight_hr_{suffixes[0]}")
        self.biased = bool(module.bias)
        buffers = {"w": torch.stack(reordered("weight_ih"))}
        if self.projected:
            # ONNX has no projection: keep the cell's own output as the state, R = W_hh W_hr, and project afterwards.
            down = [getattr(module, f"weight_hr_{suffix}").detach() for suffix in suffixes]
            recurrent = [weight @ projection for weight, projection in zip(recurrent, down, strict=True)]
            buffers["p"] = torch.stack([projection.T for projection in down])
            buffers["up"] = torch.stack([torch.linalg.pinv(projection).T for projection in down])
        buffers["r"] = torch.stack(recurrent)
        if self.biased:
            pairs = zip(reordered("bias_ih"), reordered("bias_hh"), strict=True)
            buffers["b"] = torch.stack([torch.cat(pair) for pair in pairs])
        for kind, value in buffers.items():
            module.register_buffer(f"{self.name}_{kind}", value.contiguous())

    def __call__(
        self, module: Any, x: Tensor, lengths: Tensor | None, states: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor]]:
        """Output (T, B, F) and final states (D, B, H)."""

        def weight(kind: str) -> Tensor:
            found: Tensor = getattr(module, f"{self.name}_{kind}")
            return found

        direction = "bidirectional" if len(self.directions) == 2 else "reverse" if self.directions == [1] else "forward"
        if self.projected and states[0] is not None:
            states = [states[0] @ weight("up"), *states[1:]]
        operands = (x, weight("w"), weight("r"), weight("b") if self.biased else None, lengths, *states, direction)
        if module.mode == "LSTM":
            output, *ends = torch.ops.reprune.lstm(*operands)
        elif module.mode == "GRU":
            output, *ends = torch.ops.reprune.gru(*operands)
        else:
            output, *ends = torch.ops.reprune.rnn(*operands, {"RNN_TANH": "Tanh", "RNN_RELU": "Relu"}[module.mode])
        if self.projected:
            output, ends[0] = output @ weight("p"), ends[0] @ weight("p")
        return output.transpose(1, 2).flatten(2), ends


class _Forward:
    """The replacement of one module's `forward`."""

    def __init__(self, path: str, module: Any, seen: Seen) -> None:
        self.path, self.module, self.seen = path, module, seen
        both = [0, 1] if module.bidirectional else [0]
        self.calls = []
        for layer in range(module.num_layers):
            alike = len({self._shape(layer, direction) for direction in both}) == 1
            for directions in [both] if alike else [[direction] for direction in both]:
                self.calls.append((layer, _Call(module, layer, directions)))

    def _shape(self, layer: int, direction: int) -> tuple[int, ...]:
        suffix = f"l{layer}" + "_reverse" * direction
        return tuple(getattr(self.module, f"weight_hh_{suffix}").shape)

    def run(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        """What the module's own `forward` returns."""
        module = self.module
        pair = module.mode == "LSTM"
        if getattr(module, "state_selector", None) is not None:
            hx = module.state_selector.select(hx, pair=pair)
        if isinstance(input, PackedSequence):
            return self._packed(input, hx, pair)
        batched = input.dim() == 3
        swap = module.batch_first and batched
        data = input.transpose(0, 1) if swap else input if batched else input.unsqueeze(1)
        given = None if hx is None else list(hx) if pair else [hx]
        if given is not None and not batched:
            given = [_each(state, lambda piece: piece.unsqueeze(-2)) for state in given]
        output, ends = self._run(data, None, given)
        if not batched:
            output = output.squeeze(1)
        finals = [self._join(end, batched) for end in ends]
        return output.transpose(0, 1) if swap else output, tuple(finals) if pair else finals[0]

    def _packed(self, packed: PackedSequence, hx: Any, pair: bool) -> Any:
        self.seen.packed = True
        data, batch_sizes, order, restore = packed
        given = None if hx is None else list(hx) if pair else [hx]
        if given is not None and order is not None:
            given = [_each(state, lambda piece: piece.index_select(-2, order)) for state in given]
        output, ends = self._run(data, lengths_of(data, batch_sizes), given)
        if restore is not None:
            ends = [[end.index_select(1, restore) for end in kind] for kind in ends]
        finals = [self._join(end, True) for end in ends]
        return PackedSequence(output, batch_sizes, order, restore), tuple(finals) if pair else finals[0]

    def _run(self, data: Tensor, lengths: Tensor | None, given: list[Any] | None) -> tuple[Tensor, list[list[Tensor]]]:
        """All layers on (T, B, F), from initial states in either form to final ones of (D, B, H) per call."""
        self.seen.read(data)
        kinds = 2 if self.module.mode == "LSTM" else 1
        pieces = self.module.num_layers * (2 if self.module.bidirectional else 1)
        if any(len(state) != pieces for state in given or ()):
            raise RuntimeError(f"the initial state of {self.path!r} must have {pieces} layers and directions")
        ends: list[list[Tensor]] = [[] for _ in range(kinds)]
        outputs: list[Tensor] = []
        below = 0
        for layer, call in self.calls:
            if layer != below:
                data, outputs, below = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0], [], layer
            count = len(call.directions)
            starts = [None] * kinds if given is None else [_span(state, call.first, count) for state in given]
            output, final = call(self.module, data, lengths, starts)
            outputs.append(output)
            for kind, end in zip(ends, final, strict=True):
                kind.append(end)
        data = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
        return data, ends

    def _join(self, ends: list[Tensor], batched: bool) -> Any:
        """Final states in the module's form: stacked, or a tuple if a ragged module's sizes differ."""
        if len({end.shape[-1] for end in ends}) == 1:
            joined = torch.cat(ends) if len(ends) > 1 else ends[0]
            return joined if batched else joined.squeeze(1)
        pieces = [piece for end in ends for piece in end.unbind(0)]
        return tuple(pieces) if batched else tuple(piece.squeeze(0) for piece in pieces)


def _each(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A state with a change made to it, or to each of its pieces if it is a tuple."""
    return change(state) if isinstance(state, Tensor) else tuple(change(piece) for piece in state)


def _span(state: Any, first: int, count: int) -> Tensor:
    """Some layers and directions of a state, (D, B, H)."""
    if isinstance(state, Tensor):
        return state[first : first + count] if state.shape[0] != count else state
    return torch.stack(tuple(state[first : first + count]))


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(custom_translation_table=…)`: each operator as its counterpart in ONNX."""
    from onnxscript import opset18 as op

    def steps(lengths: Any) -> Any:
        return None if lengths is None else op.Cast(lengths, to=6)  # int32

    def lstm(x: Any, w: Any, r: Any, b: Any, lengths: Any, h: Any, c: Any, direction: str) -> Any:
        return op.LSTM(x, w, r, b, steps(lengths), h, c, direction=direction, hidden_size=r.shape[2])

    def gru(x: Any, w: Any, r: Any, b: Any, lengths: Any, h: Any, direction: str) -> Any:
        # PyTorch applies the reset gate to the product W_hn h + b_hn.
        return op.GRU(x, w, r, b, steps(lengths), h, direction=direction, hidden_size=r.shape[2], linear_before_reset=1)

    def rnn(x: Any, w: Any, r: Any, b: Any, lengths: Any, h: Any, direction: str, activation: str) -> Any:
        activations = [activation] * (2 if direction == "bidirectional" else 1)
        return op.RNN(
            x, w, r, b, steps(lengths), h, direction=direction, hidden_size=r.shape[2], activations=activations
        )

    kernels = torch.ops.reprune
    return {kernels.lstm.default: lstm, kernels.gru.default: gru, kernels.rnn.default: rnn}
