"""Which sequences stand where in packs, which hold them sorted by length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils.rnn import PackedSequence

from reprune.torch.ragged.base import RaggedBase
from reprune.torch.tracing.labels import storage_id
from reprune.torch.tracing.running.dispatch import DispatchMode


class Orders:
    """Orders of the sequences of a batch, by the pack's `batch_sizes`, which every tensor of a pack goes with."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def note(self, batch_sizes: torch.Tensor, order: torch.Tensor | None) -> None:
        """A pack has its sequences in this order; None if in that of the batch."""
        self._known[storage_id(batch_sizes)] = batch_sizes, order

    def of(self, batch_sizes: torch.Tensor) -> torch.Tensor:
        """Indices of the sequences, in the order in which the pack has them."""
        _, order = self._known.get(storage_id(batch_sizes), (None, None))
        return torch.arange(int(batch_sizes[0])) if order is None else order


@contextmanager
def pack_orders(model: nn.Module) -> Iterator[Orders]:
    """Within this context and thread, orders of the packs that a pass makes or its recurrent modules are given."""
    orders = Orders()

    def given(_: nn.Module, args: tuple[Any, ...]) -> None:
        # A pack without an order is of sequences that were sorted before: how, was seen when they were packed.
        if args and isinstance(args[0], PackedSequence) and args[0].sorted_indices is not None:
            orders.note(args[0].batch_sizes, args[0].sorted_indices)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, (nn.RNNBase, RaggedBase)):
                stack.callback(module.register_forward_pre_hook(given).remove)
        stack.enter_context(_Packs(orders))
        yield orders


class _Packs(DispatchMode):
    """A batch is sorted by picking its sequences, then it is packed."""

    def __init__(self, orders: Orders) -> None:
        super().__init__()
        self._orders = orders
        self._picked: dict[int, tuple[StorageWeakRef, torch.Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in ("aten::index_select", "aten::index"):
            indices = [args[2]] if name == "aten::index_select" else [index for index in args[1] if index is not None]
            if len(indices) == 1 and indices[0].ndim == 1:
                chosen = indices[0].nonzero()[:, 0] if indices[0].dtype == torch.bool else indices[0]
                kept = StorageWeakRef(out.untyped_storage())  # type: ignore[no-untyped-call]
                self._picked[storage_id(out)] = kept, chosen
        elif name == "aten::_pack_padded_sequence":
            _, order = self._picked.get(storage_id(args[0]), (None, None))
            self._orders.note(out[1], order)
        return out
