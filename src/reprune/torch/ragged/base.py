"""What the ragged LSTM, GRU and RNN share: parameters, checks, running the layers in as few calls as possible."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from reprune.core.errors import PlanError
from reprune.torch.ragged.kernels import GATES, cell_responses, reversal, reverse, run_stack, run_wide_projection
from reprune.torch.ragged.layout import Sizes, Stack, checked, common, stacks_of
from reprune.torch.ragged.states import State, States, StateSelector, check_state, each_piece, join_pieces, stack_pieces

Observer = Callable[[str, Tensor, Tensor, Tensor, Tensor], None]
"""`callback(name, input, response, h_0, h_n)`, see `observe`."""
# Before PyTorch 2.7 an exporting trace cannot be told from a compiling one; let both trace the kernel.
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: True)


class RaggedBase(nn.Module):
    """What the three ragged modules share; the final classes add `forward` in the signature of their dense kin."""

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_sizes: Sequence[Sequence[int]],
        proj_sizes: Sequence[Sequence[int]] | None,
        bias: bool,
        batch_first: bool,
        dropout: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.input_size = input_size
        self._resize(hidden_sizes, proj_sizes)
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout should be a number in range [0, 1], got {dropout}")
        if input_size <= 0:
            raise ValueError(f"input_size must be greater than zero, got {input_size}")
        self.num_layers = len(self.hidden_sizes)
        self.num_directions = len(self.hidden_sizes[0])
        self.bidirectional = self.num_directions == 2
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.state_selector: StateSelector | None = None
        self._observers: list[Observer] = []
        self._piece_names = self._register(device, dtype)
        self._flat_weights_names = [name for names in self._piece_names for name in names]
        self.reset_parameters()
        self.flatten_parameters()

    def _register(self, device: torch.device | str | None, dtype: torch.dtype | None) -> list[list[str]]:
        """Create the parameters under PyTorch's names; those names, piece by piece."""
        names = []
        for layer, suffix, units, out in self._pieces():
            read = self.input_size if layer == 0 else sum(self.output_sizes[layer - 1])
            rows = GATES[self.mode] * units
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, read), "weight_hh": (rows, out)}
            if self.bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            if self.proj_sizes is not None:
                shapes["weight_hr"] = (out, units)
            for kind, shape in shapes.items():
                empty = torch.empty(shape, device=device, dtype=dtype)
                self.register_parameter(f"{kind}_{suffix}", nn.Parameter(empty))
            names.append([f"{kind}_{suffix}" for kind in shapes])
        return names

    def refit(self) -> None:
        """Take over the sizes of the weights, which were sliced."""
        own = dict(self.named_parameters(recurse=False))

        def sizes(weight: str, gates: int) -> list[list[int]]:
            pieces = [own[f"{weight}_{suffix}"].shape[0] // gates for _, suffix, _, _ in self._pieces()]
            return [pieces[i : i + self.num_directions] for i in range(0, len(pieces), self.num_directions)]

        self.input_size = own["weight_ih_l0"].shape[1]
        self._resize(sizes("weight_ih", GATES[self.mode]), sizes("weight_hr", 1) if self.proj_sizes else None)
        if self.state_selector is not None:
            # States of the widths before either pruning are accepted: this selector's, then the one to come.
            self.register_forward_pre_hook(self.state_selector, with_kwargs=True)
            self.state_selector = None
        self.flatten_parameters()

    def _resize(self, hidden_sizes: Sequence[Sequence[int]], proj_sizes: Sequence[Sequence[int]] | None) -> None:
        """Set all that follows from the sizes of the layers and directions."""
        self.hidden_sizes = checked("hidden_sizes", hidden_sizes)
        self.proj_sizes = None if proj_sizes is None else checked("proj_sizes", proj_sizes)
        if self.proj_sizes is not None and [len(s) for s in self.proj_sizes] != [len(s) for s in self.hidden_sizes]:
            raise ValueError(f"proj_sizes {self.proj_sizes} must be nested as hidden_sizes {self.hidden_sizes}")
        self.hidden_size = common(self.hidden_sizes)
        self.proj_size: int | Sizes = 0 if self.proj_sizes is None else common(self.proj_sizes)
        self.output_sizes = self.proj_sizes or self.hidden_sizes
        self._stacks = stacks_of(self.hidden_sizes, self.output_sizes, projected=self.proj_sizes is not None)
        # The widths of `h`, and of `c` for an LSTM, per layer and direction.
        flat = [tuple(size for sizes in nested for size in sizes) for nested in (self.output_sizes, self.hidden_sizes)]
        self._state_sizes = flat if self.mode == "LSTM" else flat[:1]

    def _pieces(self) -> Iterator[tuple[int, str, int, int]]:
        """Layer, suffix, units and output size of every layer and direction, in PyTorch's order."""
        for layer, (hidden, out) in enumerate(zip(self.hidden_sizes, self.output_sizes, strict=True)):
            for direction in range(len(hidden)):
                yield layer, f"l{layer}" + "_reverse" * direction, hidden[direction], out[direction]

    def reset_parameters(self) -> None:
        """Draw new weights as PyTorch does: uniform in ±1/sqrt(units), per layer and direction."""
        for (_, _, units, _), names in zip(self._pieces(), self._piece_names, strict=True):
            bound = 1 / math.sqrt(units)
            for name in names:
                nn.init.uniform_(getattr(self, name), -bound, bound)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights, one list per layer and direction, as `nn.LSTM.all_weights`."""
        return [[getattr(self, name) for name in names] for names in self._piece_names]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return self._weights(0, len(self._piece_names))

    def _weights(self, first: int, stop: int) -> list[Tensor]:
        """Those of the pieces `first..stop-1`, in PyTorch's flat order."""
        own = self._parameters  # Attributes are four times as slow to look up; parametrised weights are nothing else.
        names = [name for names in self._piece_names[first:stop] for name in names]
        return [own[name] if name in own else getattr(self, name) for name in names]  # type: ignore[misc]

    def flatten_parameters(self) -> None:
        """Lay the weights of every fused call out in one chunk, as cuDNN wants them. Does nothing on other devices."""
        if not all(weight.is_cuda for weight in self._flat_weights):
            return
        for stack in self._stacks:
            if stack.fused:
                self._plain(range(stack.first, stack.stop), range(self.num_directions)).flatten_parameters()
                continue
            for direction in range(self.num_directions):
                if self.proj_sizes is None or self._narrow(stack.first, direction):
                    self._plain(range(stack.first, stack.stop), range(direction, direction + 1)).flatten_parameters()

    def _narrow(self, layer: int, direction: int) -> bool:
        return self.output_sizes[layer][direction] < self.hidden_sizes[layer][direction]

    def _plain(self, layers: range, directions: range) -> nn.LSTM | nn.GRU | nn.RNN:
        """The equally large pieces of these layers and directions as a plain module that holds the same parameters."""
        first, direction = layers[0], directions[0]
        kind: Any = {"LSTM": nn.LSTM, "GRU": nn.GRU}.get(self.mode, nn.RNN)
        options: dict[str, Any] = {"nonlinearity": self.mode[4:].lower()} if kind is nn.RNN else {}
        if self.proj_sizes is not None:
            options["proj_size"] = self.proj_sizes[first][direction]
        module: nn.LSTM | nn.GRU | nn.RNN = kind(
            self.input_size if first == 0 else sum(self.output_sizes[first - 1]),
            self.hidden_sizes[first][direction],
            len(layers),
            bias=self.bias,
            batch_first=self.batch_first,
            bidirectional=len(directions) == 2,
            device="meta",
            **options,
        )
        module.dropout = self.dropout  # Not by the constructor, which warns if there is one layer.
        sources = [self._piece_names[layer * self.num_directions + d] for layer in layers for d in directions]
        targets: list[list[str]] = module._all_weights
        for own, theirs in zip(sources, targets, strict=True):
            for source, target in zip(own, theirs, strict=True):
                setattr(module, target, getattr(self, source))
        return module

    def accept_full_states(
        self,
        full_sizes: Sequence[int],
        kept: Sequence[Sequence[int]],
        *,
        cell_full_sizes: Sequence[int] | None = None,
        cell_kept: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Accept initial states of the width before pruning as well, and select the kept entries of them.

        Args:
            full_sizes: The width of `h` before pruning, per layer and direction.
            kept: The units that are left, ascending, per layer and direction.
            cell_full_sizes: The same for `c` of an LSTM with projections.
            cell_kept: The units of `c` that are left, likewise.

        Raises:
            PlanError: The kept units are not as many as this module has.
        """
        selector = StateSelector(full_sizes, kept, cell_full_sizes=cell_full_sizes, cell_kept=cell_kept)
        selections = (selector.hidden, selector.cell) if self.mode == "LSTM" else (selector.hidden,)
        for selection, sizes in zip(selections, self._state_sizes, strict=True):
            if selection.sizes != sizes:
                raise PlanError(f"the module has {sizes} units per layer and direction, kept lists {selection.sizes}")
        self.state_selector = selector

    @contextmanager
    def observe(self, callback: Observer) -> Iterator[None]:
        """Within this context, report what every layer and direction reads and emits in each forward call.

        Each call of `callback(name, input, response, h_0, h_n)` gets

        - the layer's suffix (`"l0"`, `"l0_reverse"`, `"l1"`, …),
        - its input and its response, in the original order of time: (T, B, features) even if `batch_first`, or the data
          (N, features) of a `PackedSequence`, which holds valid steps only,
        - its initial and its final hidden state (B, H), in the order of the (sorted) batch.

        An LSTM with projections reports twice: under the suffix the response of its cell units before the projection,
        and under `"l0:projection"` the projected one; `h_0` and `h_n` are the projected states in both.

        Layers and directions run one by one while observed; the results are those of the fused call up to rounding.

        Example:
            >>> with module.observe(lambda name, x, response, h_0, h_n: print(name, response.shape)):
            ...     module(torch.randn(7, 2, 5))
        """
        self._observers.append(callback)
        try:
            with warnings.catch_warnings():
                # cuDNN's flat weights are those of the fused call. A pass of observation is not worth a second copy.
                warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
                yield
        finally:
            self._observers.remove(callback)

    def _forward(self, source: Tensor | PackedSequence, hx: Any) -> tuple[Tensor | PackedSequence, list[State]]:
        """Output and final states, one entry per kind of state, whatever the form of the input."""
        if torch.compiler.is_dynamo_compiling() and not _is_exporting():
            # As torch.compile treats nn.LSTM: traced, the fused kernel becomes one unrolled graph per length.
            return torch.compiler.disable(self._compute)(source, hx)  # type: ignore[no-any-return, no-untyped-call]
        return self._compute(source, hx)

    def _compute(self, source: Tensor | PackedSequence, hx: Any) -> tuple[Tensor | PackedSequence, list[State]]:
        if self.state_selector is not None:
            hx = self.state_selector.select(hx, pair=self.mode == "LSTM")
        given: tuple[States, ...] | None = None if hx is None else tuple(hx) if self.mode == "LSTM" else (hx,)
        if isinstance(source, PackedSequence):
            data, batch_sizes, order, restore = source
            self._check_input(data, dims=2)
            starts = self._starts(given, data, int(batch_sizes[0]), batched=True)
            if given is not None and order is not None:
                starts = [each_piece(start, lambda piece: piece.index_select(-2, order)) for start in starts]
            output, ends = self._run(data, batch_sizes, starts)
            if restore is not None:
                ends = [each_piece(end, lambda piece: piece.index_select(-2, restore)) for end in ends]
            return PackedSequence(output, batch_sizes, order, restore), ends
        if source.dim() not in (2, 3):
            raise ValueError(f"{type(self).__name__}: Expected input to be 2D or 3D, got {source.dim()}D instead")
        batched = source.dim() == 3
        swap = self.batch_first and batched
        data = source.transpose(0, 1) if swap else source if batched else source.unsqueeze(1)
        self._check_input(data, dims=3)
        output, ends = self._run(data, None, self._starts(given, data, data.shape[1], batched=batched))
        if not batched:
            return output.squeeze(1), [each_piece(end, lambda piece: piece.squeeze(-2)) for end in ends]
        return output.transpose(0, 1) if swap else output, ends

    def _check_input(self, data: Tensor, *, dims: int) -> None:
        dtype = getattr(self, self._flat_weights_names[0]).dtype
        if data.dtype != dtype and not torch.is_autocast_enabled(data.device.type):
            raise ValueError(
                f"RNN input dtype ({data.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({data.dtype})"
            )
        if data.dim() != dims:
            raise RuntimeError(f"input must have {dims} dimensions, got {data.dim()}")
        if data.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {data.shape[-1]}"
            )

    def _starts(self, given: tuple[States, ...] | None, data: Tensor, batch: int, *, batched: bool) -> list[State]:
        """The initial states, checked: (pieces, B, size) if all sizes are equal, otherwise a tuple of (1, B, size)."""
        kinds = self._state_sizes
        if given is None:
            # Nothing writes to them: one tensor of zeros serves all pieces of its size.
            zeros = {
                size: data.new_zeros(1, batch, size)
                for size in dict.fromkeys(size for sizes in kinds for size in sizes)
            }
            return [
                data.new_zeros(len(sizes), batch, sizes[0])
                if len(set(sizes)) == 1
                else tuple(zeros[size] for size in sizes)
                for sizes in kinds
            ]
        if len(given) != len(kinds):
            raise RuntimeError(f"Expected hx to be a pair (h_0, c_0), got {len(given)} entries")
        labels = ("hidden[0]", "hidden[1]") if len(kinds) == 2 else ("hidden",)
        return [
            check_state(label, state, sizes, batch, batched=batched)
            for label, state, sizes in zip(labels, given, kinds, strict=True)
        ]

    def _run(self, data: Tensor, batch_sizes: Tensor | None, starts: Sequence[States]) -> tuple[Tensor, list[State]]:
        """All layers, on (T, B, F) or packed data."""
        stacks = self._stacks
        if self._observers:
            stacks = [Stack(layer, layer + 1, fused=False) for layer in range(self.num_layers)]
        apart = self.bidirectional and not all(stack.fused for stack in stacks)
        order = reversal(batch_sizes).to(data.device) if apart and batch_sizes is not None else None
        ends: list[list[Tensor]] = [[] for _ in starts]
        for stack in stacks:
            if stack.first and self.dropout:
                data = F.dropout(data, self.dropout, self.training)
            if stack.fused:
                data, *final = self._run_fused(stack, data, batch_sizes, starts)
                for kind, end in zip(ends, final, strict=True):
                    kind.append(end)
            else:
                data = self._run_apart(stack.first, data, batch_sizes, order, starts, ends)
        return data, [join_pieces(kind, sizes) for kind, sizes in zip(ends, self._state_sizes, strict=True)]

    def _run_fused(
        self, stack: Stack, data: Tensor, batch_sizes: Tensor | None, starts: Sequence[States]
    ) -> tuple[Tensor, ...]:
        first, stop = stack.first * self.num_directions, stack.stop * self.num_directions
        return run_stack(
            self.mode,
            data,
            batch_sizes,
            [stack_pieces(start, first, stop) for start in starts],
            self._weights(first, stop),
            bias=self.bias,
            layers=stack.stop - stack.first,
            dropout=self.dropout,
            training=self.training,
            bidirectional=self.bidirectional,
        )

    def _run_apart(
        self,
        layer: int,
        data: Tensor,
        batch_sizes: Tensor | None,
        order: Tensor | None,
        starts: Sequence[States],
        ends: list[list[Tensor]],
    ) -> Tensor:
        """One layer, each direction by itself; appends its final states to `ends`."""
        outputs = []
        for direction in range(self.num_directions):
            piece = layer * self.num_directions + direction
            backward = direction == 1
            read = reverse(data, order) if backward else data
            states = [stack_pieces(start, piece, piece + 1) for start in starts]
            weights = self._weights(piece, piece + 1)
            if self.proj_sizes is not None and not self._narrow(layer, direction):
                emitted, *final = run_wide_projection(
                    read, batch_sizes, states, weights, bias=self.bias, training=self.training
                )
            else:
                emitted, *final = run_stack(
                    self.mode, read, batch_sizes, states, weights, bias=self.bias, training=self.training
                )
            for kind, end in zip(ends, final, strict=True):
                kind.append(end)
            response = reverse(emitted, order) if backward else emitted
            outputs.append(response)
            if not self._observers:
                continue
            name = f"l{layer}" + "_reverse" * direction
            if self.proj_sizes is not None:
                inner = cell_responses(read, batch_sizes, states, emitted, weights)
                self._report(name, data, reverse(inner, order) if backward else inner, states[0][0], final[0][0])
                name += ":projection"
            self._report(name, data, response, states[0][0], final[0][0])
        return torch.cat(outputs, dim=-1) if self.bidirectional else outputs[0]

    def _report(self, name: str, read: Tensor, response: Tensor, start: Tensor, end: Tensor) -> None:
        for observer in self._observers:
            observer(name, read, response, start, end)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RaggedBase:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.flatten_parameters()  # Moved weights are no longer in one chunk.
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_observers": []}  # Observers belong to a running context, not to the model.

    def extra_repr(self) -> str:
        """Sizes and the options that differ from their defaults, in the manner of `nn.LSTM`."""
        parts = [str(self.input_size), f"hidden_sizes={self.hidden_sizes}"]
        defaults = {"proj_sizes": None, "bias": True, "batch_first": False, "dropout": 0.0}
        parts += [f"{key}={getattr(self, key)}" for key, default in defaults.items() if getattr(self, key) != default]
        if self.mode == "RNN_RELU":
            parts.append("nonlinearity='relu'")
        return ", ".join(parts)
