"""Passes watched at the operations themselves: what every weight reads, and what layers answer.

Two modes of this thread stand around a pass; the model, whatever its modules' classes are, is not touched. The function
mode takes recurrent kernels over and runs them layer by layer (`kernels.py`), with the weights that they were handed.
The dispatch mode sees every product, and what the model computes from its weights before it uses them (`weights.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from types import BuiltinFunctionType
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from reprune.core.evidence.readings import Axis
from reprune.torch.calibration.kernels import KERNELS, Piece
from reprune.torch.calibration.weights import PRODUCTS, Weights
from reprune.torch.tracing.running.dispatch import DispatchMode


@dataclass(frozen=True)
class Seen:
    """What one weight was multiplied with at once.

    Attributes:
        axis: The weight, and its axis that is contracted.
        first: Position on that axis of the first feature; all positions are not always read together.
        features: (… × sequences × features), or (N × features) if packed; apart from the graph.
        answers: Whether these are the answers of a recurrent kernel, which the weight reads at the next step.
        batch_sizes: Sequences at every step, if packed.
    """

    axis: Axis
    first: int
    features: torch.Tensor
    answers: bool = False
    batch_sizes: torch.Tensor | None = None


class Listener(Protocol):
    """Who is told."""

    def read(self, seen: Seen) -> None:
        """A weight was multiplied."""

    def feed_back(self, axis: Axis, first: torch.Tensor, last: torch.Tensor) -> None:
        """A kernel's recurrent weight started from the states `first` and ended with `last` (sequences × units)."""


@contextmanager
def watch(tensors: Mapping[str, torch.Tensor], axes: Collection[Axis], listener: Listener) -> Iterator[None]:
    """Within this context and thread, tell what these axes of a model's weights are multiplied with.

    Args:
        tensors: The model's parameters and buffers by name.
        axes: Of which of them.
        listener: Who is told, in the order of the operations.
    """
    with _Products(Weights(tensors, axes), axes, listener) as products, _Kernels(products), _fresh_half_precision():
        yield


@contextmanager
def _fresh_half_precision() -> Iterator[None]:
    """In mixed precision, weights that were cast before this context are cast again, where it can be seen."""
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


# Functions that multiply all rows of a tensor of any shape at once, and of how many of their arguments they do so.
_FOLDING = {"linear": 1, "matmul": 1, "__matmul__": 1, "multi_head_attention_forward": 3}


class _Kernels(TorchFunctionMode):
    def __init__(self, products: _Products) -> None:
        super().__init__()
        self._products = products

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        run = KERNELS.get(name) if isinstance(func, BuiltinFunctionType) else None
        if run is None or kwargs:
            with self._products.folded([tensor.shape[:-1] for tensor in args[: _FOLDING.get(name, 0)]]):
                return func(*args, **(kwargs or {}))
        with self._products.unwatched():
            return run(name, func, args, self._products.show)


class _Products(DispatchMode):
    def __init__(self, weights: Weights, axes: Collection[Axis], listener: Listener) -> None:
        super().__init__()
        self._weights, self._axes, self._listener = weights, frozenset(axes), listener
        self._inside = False
        self._rows: list[tuple[int, ...]] = []

    @contextmanager
    def folded(self, rows: Sequence[Sequence[int]]) -> Iterator[None]:
        """Within this context, the rows of products are those of tensors of these shapes, one after the other."""
        self._rows = [tuple(shape) for shape in rows]
        try:
            yield
        finally:
            self._rows = []

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Within this context, operations are not looked at."""
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def show(self, piece: Piece) -> None:
        """A layer ran in a kernel."""
        incoming, recurrent = piece.weights[:2]
        self._tell(incoming, 1, piece.read, batch_sizes=piece.batch_sizes)
        self._tell(recurrent, 1, piece.response, answers=True, batch_sizes=piece.batch_sizes)
        if piece.inner is not None:
            self._tell(piece.weights[-1], 1, piece.inner, answers=True, batch_sizes=piece.batch_sizes)
        if piece.first is not None and piece.last is not None:
            for axis, *_ in self._weights.along(recurrent, 1):
                self._listener.feed_back(axis, piece.first.detach(), piece.last.detach())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation; look at its operands before it may write into them."""
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled():
            # Without autograd's layer, operations come here before they are taken apart.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        name = func._schema.name.removeprefix("aten::")
        self._look_at(name, args)
        out = func(*args, **kwargs)
        self._weights.follow(name.rstrip("_"), args, out)
        return out

    def _look_at(self, name: str, args: tuple[Any, ...]) -> None:
        if name in PRODUCTS:
            self._product(*args[-2:])
        elif name in ("mv", "addmv", "dot", "vdot"):
            left, right = args[-2:]
            self._product(left if left.ndim > 1 else left[None], right[:, None])
        elif name == "convolution":
            data, weight, transposed = args[0], args[1], args[6]
            self._tell(weight, 0 if transposed else 1, data.permute(*range(2, data.ndim), 0, 1))
            for dim in range(2, data.ndim):
                if not transposed and weight.size(dim) == data.size(dim):  # The window covers it whole.
                    self._tell(weight, dim, data.movedim(dim, -1))

    def _product(self, left: torch.Tensor, right: torch.Tensor) -> None:
        # Two weights that are multiplied with each other read nothing.
        if not all(
            self._weights.along(operand, dim) or self._weights.within(operand, dim)
            for operand, dim in ((left, -1), (right, -2))
        ):
            rows = next((rows for rows in self._rows if rows and left.ndim == 2 and prod(rows) == len(left)), None)
            self._tell(right, -2, left if rows is None else left.reshape(*rows, -1))
            self._tell(left, -1, right.transpose(-1, -2))

    def _tell(self, weight: torch.Tensor, dim: int, features: torch.Tensor, **more: Any) -> None:
        for axis, first, start, count in self._weights.along(weight, dim):
            if axis not in self._axes:
                continue
            self._listener.read(Seen(axis, first, features[..., start : start + count].detach(), **more))
        for within in self._weights.within(weight, dim):
            if within.part.axis in self._axes:
                self._listener.read(Seen(within.part.axis, within.part.first, within.apart(features).detach()))
