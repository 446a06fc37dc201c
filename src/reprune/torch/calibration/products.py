"""What weights are multiplied with that no module reads by itself: `h @ self.u`, `F.conv1d(…)`, gate after gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reprune.torch.tracing.labels import storage_id

# Where the operands stand among the arguments.
_PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}
See = Callable[[torch.Tensor], None]


class ProductWatcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports the other operand of every product with a weight, or with a part of it.

    Attributes:
        paused: Whether products are not looked at.
        wanted: By storage, weights with their contracted axis and who is told.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.paused = False
        self.wanted: dict[int, list[tuple[torch.Tensor, int, See]]] = {}

    def add(self, weight: torch.Tensor, axis: int, see: See) -> None:
        """Look at a weight with this contracted axis; `see` is told the features (… × sequences × features)."""
        self.wanted.setdefault(storage_id(weight), []).append((weight, axis, see))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation; look at its operands before it may write into them."""
        if not self.paused:
            self._look_at(func._schema.name, args)
        return func(*args, **(kwargs or {}))

    def _look_at(self, name: str, args: tuple[Any, ...]) -> None:
        if name in _PRODUCTS:
            left, right = args[_PRODUCTS[name] : _PRODUCTS[name] + 2]
            self._look(right, -2, left)
            self._look(left, -1, right.transpose(-1, -2))
        elif name == "aten::convolution":
            data, weight, transposed = args[0], args[1], args[6]
            self._look(weight, 0 if transposed else 1, data.permute(*range(2, data.ndim), 0, 1))

    def _look(self, operand: torch.Tensor, dim: int, other: torch.Tensor) -> None:
        for weight, axis, see in self.wanted.get(storage_id(operand), ()):
            # A view of the weight that holds the whole axis, whatever was done with the others.
            if (operand.size(dim), operand.stride(dim)) == (weight.size(axis), weight.stride(axis)):
                see(other.detach())
