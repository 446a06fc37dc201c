"""Ragged modules as plain ones, for tools that go by a module's type: dynamic quantisation, TorchScript, converters."""

# TorchScript reads annotations: they must not be the strings that `from __future__ import annotations` makes of them.
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from reprune.torch.ragged.base import RaggedBase
from reprune.torch.ragged.kernels import GATES
from reprune.torch.tracing.running.copies import duplicate


def plain(model: nn.Module) -> nn.Module:
    """A copy of a model in which an `nn.LSTM`, `nn.GRU` or `nn.RNN` runs in the place of every ragged module.

    The plain module has in all layers and directions the units of the largest, the others filled up with units whose
    weights are zero, which emit zero. Around it a `Padded` module takes and returns what the ragged one did. The model
    computes the same; it runs more arithmetic, up to what its largest layer has. To prune to equal sizes in the first
    place, give `uniform=True`.

    Args:
        model: A pruned model; it is left as it was.

    Example:
        >>> small = plain(result.model)                                                     # doctest: +SKIP
        >>> torch.ao.quantization.quantize_dynamic(small, {nn.LSTM}, dtype=torch.qint8)     # doctest: +SKIP
    """
    model = duplicate(model)
    if isinstance(model, RaggedBase):
        return _padded(model)
    made: dict[RaggedBase, _Padded] = {}  # One module under two names stays one.
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, RaggedBase):
                if child not in made:
                    made[child] = _padded(child)
                module._modules[name] = made[child]
    return model


class _Padded(nn.Module):
    """What both padded modules share: the plain module, and where in its outputs the units are.

    Attributes:
        rnn: The plain module.
        kept: Positions in its output of what the ragged module emits.
        sizes: Width of `h` of each layer and direction; `cells` that of `c`.
    """

    kept: Tensor

    def __init__(self, ragged: RaggedBase, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn
        self.sizes: list[int] = [size for sizes in ragged.output_sizes for size in sizes]
        self.cells: list[int] = [size for sizes in ragged.hidden_sizes for size in sizes]
        self.width = int(rnn.proj_size or rnn.hidden_size)
        self.cell_width = int(rnn.hidden_size)
        kept = [
            direction * self.width + unit
            for direction, size in enumerate(ragged.output_sizes[-1])
            for unit in range(size)
        ]
        self.register_buffer("kept", torch.tensor(kept), persistent=False)
        self.stacked = len(set(self.sizes)) == 1 and len(set(self.cells)) == 1
        self._selector = ragged.state_selector

    @torch.jit.unused
    def _given(self, hx: Any, pair: bool) -> Any:
        """A state as the caller has it, in pieces: it may be stacked, or of the width before pruning."""
        if self._selector is not None:
            hx = self._selector.select(hx, pair=pair)
        kinds = [list(kind.unbind(0)) if isinstance(kind, Tensor) else list(kind) for kind in (hx if pair else (hx,))]
        return tuple(kinds) if pair else kinds[0]

    @torch.jit.unused
    def _returned(self, output: Any, state: Any) -> Any:
        """The output and the states as the ragged module returns them."""
        if isinstance(output, PackedSequence):
            output = output._replace(data=output.data.index_select(-1, self.kept))
        else:
            output = output.index_select(-1, self.kept)
        return output, state


def _pieces(state: Tensor, sizes: list[int]) -> list[Tensor]:
    found: list[Tensor] = []
    for index, size in enumerate(sizes):
        found.append(state[index][..., :size])
    return found


def _filled(pieces: list[Tensor], width: int) -> Tensor:
    found: list[Tensor] = []
    for piece in pieces:
        found.append(F.pad(piece, [0, width - piece.shape[-1]]))
    return torch.stack(found)


class PaddedLSTM(_Padded):
    """A `RaggedLSTM` run by an `nn.LSTM`: its signature and results, with states as lists of tensors in TorchScript."""

    def forward(
        self, input: Tensor, hx: tuple[list[Tensor], list[Tensor]] | None = None
    ) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]]]:
        """Output and final states; see `RaggedLSTM`."""
        given: tuple[Tensor, Tensor] | None = None
        if hx is not None:
            if not torch.jit.is_scripting():  # type: ignore[attr-defined]
                hx = self._given(hx, True)
            given = (_filled(hx[0], self.width), _filled(hx[1], self.cell_width))
        output, (h, c) = self.rnn(input, given)
        states = (_pieces(h, self.sizes), _pieces(c, self.cells))
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return output.index_select(-1, self.kept), states
        else:  # noqa: RET505
            # TorchScript would compile what stands after the `if`.
            return self._returned(output, tuple(torch.stack(s) if self.stacked else tuple(s) for s in states))  # type: ignore[no-any-return]


class PaddedGRU(_Padded):
    """A `RaggedGRU` or `RaggedRNN` run by an `nn.GRU` or `nn.RNN`: see `PaddedLSTM`."""

    def forward(self, input: Tensor, hx: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Output and final states; see `RaggedGRU`."""
        given: Tensor | None = None
        if hx is not None:
            if not torch.jit.is_scripting():  # type: ignore[attr-defined]
                hx = self._given(hx, False)
            given = _filled(hx, self.width)
        output, h = self.rnn(input, given)
        states = _pieces(h, self.sizes)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return output.index_select(-1, self.kept), states
        else:  # noqa: RET505
            # TorchScript would compile what stands after the `if`.
            return self._returned(output, torch.stack(states) if self.stacked else tuple(states))  # type: ignore[no-any-return]


def _padded(ragged: RaggedBase) -> _Padded:
    units = max(size for sizes in ragged.hidden_sizes for size in sizes)
    projected = 0 if ragged.proj_sizes is None else max(size for sizes in ragged.proj_sizes for size in sizes)
    # A plain LSTM's projection has fewer components than the cell has units.
    units = max(units, projected + 1 if projected else 0)
    kind: Any = {"LSTM": nn.LSTM, "GRU": nn.GRU}.get(ragged.mode, nn.RNN)
    options: dict[str, Any] = {"nonlinearity": ragged.mode[4:].lower()} if kind is nn.RNN else {}
    if projected:
        options["proj_size"] = projected
    sample = getattr(ragged, ragged._flat_weights_names[0])
    rnn: nn.RNNBase = kind(
        ragged.input_size, units, ragged.num_layers, bias=ragged.bias, batch_first=ragged.batch_first,
        bidirectional=ragged.bidirectional, device=sample.device, dtype=sample.dtype, **options,
    )  # fmt: skip
    rnn.dropout = ragged.dropout  # Not by the constructor, which warns if there is one layer.
    out = projected or units
    with torch.no_grad():
        for layer, suffix, own, emitted in ragged._pieces():
            below = [ragged.input_size] if layer == 0 else list(ragged.output_sizes[layer - 1])
            read = [(size, ragged.input_size if layer == 0 else out) for size in below]
            rows = [(own, units)] * GATES[ragged.mode]
            axes = {"weight_ih": [rows, read], "weight_hh": [rows, [(emitted, out)]]}
            axes |= {"bias_ih": [rows], "bias_hh": [rows], "weight_hr": [[(emitted, out)], [(own, units)]]}
            for name, blocks in axes.items():
                target = getattr(rnn, f"{name}_{suffix}", None)
                if target is not None:
                    _fill(target, getattr(ragged, f"{name}_{suffix}"), blocks)
    padded = PaddedLSTM(ragged, rnn) if ragged.mode == "LSTM" else PaddedGRU(ragged, rnn)
    for name in vars(ragged):
        if name.startswith("_forward") and "hooks" in name:
            getattr(padded, name).update(getattr(ragged, name))
    return padded.train(ragged.training)


def _fill(target: Tensor, source: Tensor, axes: Sequence[Sequence[tuple[int, int]]]) -> None:
    """Put a tensor into a larger one of zeros: along each axis, blocks of one length into blocks of another."""
    positions = []
    for blocks in axes:
        found, start = [], 0
        for length, room in blocks:
            found.append(torch.arange(start, start + length, device=source.device))
            start += room
        positions.append(torch.cat(found))
    target.zero_()
    target[torch.meshgrid(*positions, indexing="ij")] = source.detach()
