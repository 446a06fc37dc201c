"""Initial states of the width a model had before pruning: select the entries that are left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from reprune.core.errors import PlanError

States = Tensor | Sequence[Tensor]
"""One kind of state (`h` or `c`) as a caller may give it: stacked, or one tensor per layer and direction."""
State = Tensor | tuple[Tensor, ...]
"""One kind of state as the ragged modules return it."""


class StateSelector:
    """Let a pruned recurrent module or cell accept initial states of its original width.

    Code around a model often builds `h_0` itself (`torch.zeros(layers, batch, 512)`). Registered as a forward pre-hook,
    a selector takes the kept entries out of such a state and leaves every other state alone: one that already has the
    pruned width (a fed-back `h_n`), and none at all.

        selector = StateSelector([4, 4], kept=[[0, 2], [1, 2, 3]])
        lstm.register_forward_pre_hook(selector, with_kwargs=True)

    Works for `nn.LSTM`, `nn.GRU`, `nn.RNN`, their cells and the ragged modules, positionally or as `hx=`, batched or
    not. The indices describe the structure, as sizes do: they travel with `copy.deepcopy`, pickle and `torch.export`,
    and stay out of the `state_dict`, whose keys remain those of the dense module.

    Args:
        full_sizes: The width of `h` before pruning, one per layer and direction in PyTorch's order; one for a cell.
        kept: The units that are left, ascending, one list per layer and direction.
        cell_full_sizes: The same for `c`, where it differs from `h`: an LSTM with `proj_size`.
        cell_kept: The units of `c` that are left, likewise.

    Raises:
        PlanError: The lists do not belong together, or an index is out of range or not ascending.
    """

    def __init__(
        self,
        full_sizes: Sequence[int],
        kept: Sequence[Sequence[int]],
        *,
        cell_full_sizes: Sequence[int] | None = None,
        cell_kept: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if (cell_full_sizes is None) != (cell_kept is None):
            raise PlanError("cell_full_sizes and cell_kept go together: give both, or neither if c is pruned as h is")
        self.hidden = _Selection(full_sizes, kept)
        self.cell = _Selection(cell_full_sizes, cell_kept) if cell_full_sizes is not None and cell_kept else self.hidden

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Replace the initial state among a module's arguments; the form `register_forward_pre_hook` asks for."""
        pair = isinstance(module, nn.LSTMCell) or getattr(module, "mode", None) == "LSTM"
        if len(args) > 1:
            return (args[0], self.select(args[1], pair=pair), *args[2:]), kwargs
        if "hx" in kwargs:
            return args, {**kwargs, "hx": self.select(kwargs["hx"], pair=pair)}
        return args, kwargs

    def select(self, hx: Any, *, pair: bool) -> Any:
        """The initial state with the kept entries only.

        Args:
            hx: A state as the module's `forward` takes it, or None.
            pair: Whether `hx` is `(h_0, c_0)`, as for an LSTM.

        Returns:
            A state of the same form; a stacked one becomes a tuple if the layers keep different numbers of units.
        """
        if hx is None:
            return None
        if not pair:
            return self.hidden(hx)
        h, c = hx
        return self.hidden(h), self.cell(c)

    def __repr__(self) -> str:
        cell = "" if self.cell is self.hidden else f", cell={self.cell}"
        return f"StateSelector({self.hidden}{cell})"


class _Selection:
    """The kept entries of one kind of state."""

    def __init__(self, full_sizes: Sequence[int], kept: Sequence[Sequence[int]]) -> None:
        if len(full_sizes) != len(kept) or not kept:
            raise PlanError(f"{len(full_sizes)} full sizes do not match {len(kept)} lists of kept units")
        for position, (size, units) in enumerate(zip(full_sizes, kept, strict=True)):
            ascending = all(a < b for a, b in pairwise(units))
            if not units or not ascending or units[0] < 0 or units[-1] >= size:
                raise PlanError(
                    f"kept[{position}] must hold ascending indices, at least one, all in 0..{size - 1}; got {units!r}"
                )
        self.full_sizes = tuple(full_sizes)
        # Plain tensors, moved when used: a cache per device would hold on to the fake tensors of a tracing compiler.
        self.kept = tuple(torch.tensor(list(units), dtype=torch.int64) for units in kept)
        self.sizes = tuple(len(units) for units in kept)

    def __call__(self, state: States) -> States:
        if not isinstance(state, Tensor):
            if len(state) != len(self.kept):
                return state
            return tuple(self._piece(position, piece) for position, piece in enumerate(state))
        if len(self.kept) == 1:
            return self._piece(0, state)
        width = state.shape[-1]
        stacked_full = all(size == width for size in self.full_sizes)
        if not stacked_full or self.sizes == self.full_sizes or state.shape[0] != len(self.kept):
            return state
        pieces = [self._piece(position, piece) for position, piece in enumerate(state.unbind(0))]
        return torch.stack(pieces) if len(set(self.sizes)) == 1 else tuple(pieces)

    def _piece(self, position: int, piece: Tensor) -> Tensor:
        full, kept = self.full_sizes[position], self.kept[position]
        if piece.shape[-1] != full or len(kept) == full:
            return piece
        return piece.index_select(-1, kept.to(piece.device))

    def __repr__(self) -> str:
        return f"full_sizes={self.full_sizes}, sizes={self.sizes}"


def check_state(label: str, state: States, sizes: tuple[int, ...], batch: int, *, batched: bool) -> State:
    """An initial state with a batch axis: (pieces, B, size) if all sizes are equal, otherwise a tuple of (1, B, size).

    Args:
        label: What to call the state in an error.
        state: As the caller gave it.
        sizes: The width of each piece, that is each layer and direction.
        batch: The batch size of the input.
        batched: Whether the state must have a batch axis already.

    Raises:
        RuntimeError: It does not have the expected sizes, which the message names.
    """
    equal = len(set(sizes)) == 1
    if isinstance(state, Tensor):
        if not equal:
            raise RuntimeError(
                f"Expected {label} as a tuple of {len(sizes)} tensors of sizes {[(batch, size) for size in sizes]}, "
                f"got one of size {list(state.shape)}. States before pruning are accepted after accept_full_states"
            )
        if state.dim() != 2 + batched:
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(f"For {kind} input, {label} should also be {2 + batched}-D but got {state.dim()}-D")
        stacked = state if batched else state.unsqueeze(1)
        expected = (len(sizes), batch, sizes[0])
        if stacked.shape != expected:
            raise RuntimeError(f"Expected {label} size {expected}, got {list(stacked.shape)}")
        return stacked
    pieces = tuple(piece if batched else piece.unsqueeze(0) for piece in state)
    wanted = [(batch, size) for size in sizes]
    if [tuple(piece.shape) for piece in pieces] != wanted:
        raise RuntimeError(f"Expected {label} sizes {wanted}, got {[list(piece.shape) for piece in pieces]}")
    return torch.stack(pieces) if equal else tuple(piece.unsqueeze(0) for piece in pieces)


def stack_pieces(state: States, first: int, stop: int) -> Tensor:
    """Pieces `first..stop-1` of a state as `check_state` returns it, (stop - first, B, H)."""
    if isinstance(state, Tensor):
        return state[first:stop]
    return state[first] if stop == first + 1 else torch.cat(tuple(state[first:stop]))


def join_pieces(pieces: list[Tensor], sizes: tuple[int, ...]) -> State:
    """Final states of several calls, each (n, B, H): stacked if all sizes are equal, otherwise one by one."""
    if len(pieces) == 1:
        return pieces[0]
    if len(set(sizes)) == 1:
        return torch.cat(pieces)
    return tuple(piece for held in pieces for piece in (held.unbind(0) if len(held) > 1 else (held.squeeze(0),)))


def each_piece(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """Apply a change of the batch axis to a state in either form."""
    return change(state) if isinstance(state, Tensor) else tuple(change(piece) for piece in state)
