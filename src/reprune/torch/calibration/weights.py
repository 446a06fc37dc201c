"""Where weights are during a pass: parameters, views of them, and what the model computes from them before use.

Weight drop, weight normalisation, a low-rank correction, half precision and gates that are stacked in `forward` all
multiply with a tensor that is no parameter. Every tensor that a weight's axis goes along is known by its memory, so
whatever is multiplied with it is known to be read by that weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from reprune.core.evidence.readings import Axis
from reprune.torch.tracing.labels import storage_id
from reprune.torch.tracing.rules.table import class_of

PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm"})
"""Matrix products, whose operands are the last two arguments."""
_MANY = 1024


class Part(NamedTuple):
    """The positions `start … start + length` of a dimension, which hold those of a weight's axis from `first` on."""

    axis: Axis
    first: int
    start: int
    length: int


@dataclass(frozen=True)
class _Line:
    """A part of a weight's axis along `dim` of a tensor with this layout."""

    part: Part
    dim: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def along(self, operand: torch.Tensor, dim: int) -> Part | None:
        """What of it lies along `dim` of a view of the tensor's memory."""
        rest, begin, count = int(operand.storage_offset()) - self.offset, 0, operand.size(dim)
        if count > 1 and operand.stride(dim) != self.stride[self.dim]:
            return None
        for d in reversed(self._steps()):
            place, rest = divmod(rest, self.stride[d])
            if not 0 <= place < self.size[d]:
                return None
            begin = place if d == self.dim else begin
        axis, first, start, held = self.part
        low, high = max(begin, start), min(begin + count, start + held)
        # It may lie between the tensor's numbers, or go on past its end.
        if rest or begin + count > self.size[self.dim] or low >= high:
            return None
        return Part(axis, first + low - start, low - begin, high - low)

    def _steps(self) -> list[int]:
        """The dimensions along which the memory goes on, the fastest first."""
        steps = [d for d, size in enumerate(self.size) if size > 1 and self.stride[d]]
        return sorted(steps, key=lambda d: self.stride[d])

    def within(self, operand: torch.Tensor, dim: int) -> Within | None:
        """Where it lies along `dim` of a view of the tensor's memory together with other axes."""
        step, count = operand.stride(dim), 1
        inner: list[int] = []  # Axes of the tensor that `dim` is made of, the fastest first.
        for d in self._steps():
            if self.stride[d] == step * count and count < operand.size(dim):
                inner.append(d)
                count *= self.size[d]
        whole = operand.storage_offset() == self.offset and count == operand.size(dim)
        if not whole or self.dim not in inner or len(inner) < 2:
            return None
        place = inner.index(self.dim)
        return Within(self.part, *(prod(self.size[d] for d in part) for part in (inner[place + 1 :], inner[:place])))


class Within(NamedTuple):
    """A part of a weight's axis of which a dimension holds several copies: `slower × axis × faster` positions."""

    part: Part
    slower: int
    faster: int

    def apart(self, features: torch.Tensor) -> torch.Tensor:
        """Features of all copies, (… × slower × faster × length)."""
        _, _, start, length = self.part
        parts = features.reshape(*features.shape[:-1], self.slower, -1, self.faster)
        return parts.transpose(-2, -1).narrow(-1, start, length)


class Weights:
    """The weights of a model, followed through passes.

    Args:
        tensors: Parameters and buffers by name.
        axes: The axes to be followed.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], axes: Iterable[Axis]) -> None:
        self._lines: dict[int, list[_Line]] = {}
        self._computed: dict[int, StorageWeakRef] = {}
        self._own = {storage_id(tensor) for tensor in tensors.values()}
        # Vectors of the model's own, too: what a power iteration multiplies a weight with is nothing that it reads.
        self._vectors = {(name, 0) for name, tensor in tensors.items() if tensor.ndim == 1}
        for name, axis in dict.fromkeys([*axes, *self._vectors]):
            self._add(tensors[name], axis, Part((name, axis), 0, 0, tensors[name].shape[axis]))

    def along(self, operand: torch.Tensor, dim: int) -> list[Part]:
        """Which weights' axes lie along `dim` of an operand."""
        lines = self._lines.get(storage_id(operand), ())
        found = (line.along(operand, dim % operand.ndim) for line in lines)
        return [part for part in found if part is not None]

    def within(self, operand: torch.Tensor, dim: int) -> list[Within]:
        """Which weights' axes lie along `dim` of an operand among other ones: what `einsum` sums over at once."""
        lines = self._lines.get(storage_id(operand), ())
        found = (line.within(operand, dim % operand.ndim) for line in lines)
        return [one for one in found if one is not None]

    def follow(self, name: str, args: Sequence[Any], out: Any) -> None:
        """Note what an operation computed from weights; `name` is without the underscore of those in place."""
        given = args[0] if name in ("cat", "stack") else args
        if not any(isinstance(arg, torch.Tensor) and storage_id(arg) in self._lines for arg in given):
            return
        made = out[0] if isinstance(out, (tuple, list)) else out
        if name in ("cat", "stack"):
            dim = (args[1] if len(args) > 1 else 0) % made.ndim
            (self._stacked if name == "stack" else self._concatenated)(args[0], dim, made)
        elif name == "constant_pad_nd":
            before = [*args[1][::2], *[0] * made.ndim]  # From the last dimension on.
            for d in range(made.ndim):
                self._carry(args[0], d, made, d, before[made.ndim - 1 - d])
        elif name in PRODUCTS:
            *added, left, right = args
            if all(storage_id(one) in self._lines or storage_id(one) in self._own for one in (left, right)):
                for operand, dim in ((left, -2), (right, -1)):
                    self._carry(operand, dim, made, dim)
                    self._carry_within(operand, dim, made)
                self._elementwise(added, made)
        elif name in ("copy", "_weight_norm_interface") or class_of(name) == "pointwise":
            self._elementwise(args, made)

    def _elementwise(self, operands: Sequence[Any], made: torch.Tensor) -> None:
        tensors = [operand for operand in operands if isinstance(operand, torch.Tensor)]
        known = all(storage_id(tensor) in self._lines for tensor in tensors)
        for operand in tensors:
            # A bias that is added to an activation does not make it a weight; a mask may take part in one.
            if known or (operand.ndim > 1 and operand.ndim <= made.ndim):
                for d in range(-operand.ndim, 0):
                    if operand.size(d) == made.size(d):
                        self._carry(operand, d, made, d)

    def _stacked(self, operands: Sequence[torch.Tensor], dim: int, made: torch.Tensor) -> None:
        for operand in operands:
            for d in range(operand.ndim):
                self._carry(operand, d, made, d + (d >= dim))

    def _concatenated(self, operands: Sequence[torch.Tensor], dim: int, made: torch.Tensor) -> None:
        begin = 0
        for operand in operands:
            if operand.numel():  # A vector of nothing may stand among tensors of any shape.
                for d in range(operand.ndim):
                    self._carry(operand, d, made, d, begin if d == dim else 0)
                begin += operand.shape[dim]

    def _carry(self, operand: torch.Tensor, dim: int, made: torch.Tensor, target: int, shift: int = 0) -> None:
        """What lies along a dimension of the operand lies along one of what was made, `shift` further on."""
        if storage_id(operand) == storage_id(made):
            return
        for axis, first, start, length in self.along(operand, dim):
            self._keep(made)
            self._add(made, target % made.ndim, Part(axis, first, start + shift, length))

    def _carry_within(self, operand: torch.Tensor, dim: int, made: torch.Tensor) -> None:
        """The same for axes that lie along the dimension together with others: what was made has them all, too."""
        at = dim % made.ndim
        for part, slower, faster in self.within(operand, dim):
            self._keep(made)
            length, step = made.shape[at] // (slower * faster), made.stride(at)
            size = (*made.shape[:at], slower, length, faster, *made.shape[at + 1 :])
            stride = (*made.stride()[:at], step * length * faster, step * faster, step, *made.stride()[at + 1 :])
            self._note(made, _Line(part, at + 1, size, stride, int(made.storage_offset())))

    def _keep(self, made: torch.Tensor) -> None:
        """Keep the address of a tensor's memory from being given to another one, without keeping the memory."""
        if storage_id(made) in self._lines:
            return
        if len(self._computed) >= _MANY:
            gone = [key for key, storage in self._computed.items() if storage.expired()]  # type: ignore[no-untyped-call]
            for key in gone:
                del self._computed[key], self._lines[key]
        self._computed[storage_id(made)] = StorageWeakRef(made.untyped_storage())  # type: ignore[no-untyped-call]

    def _add(self, tensor: torch.Tensor, dim: int, part: Part) -> None:
        layout = tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
        self._note(tensor, _Line(part, dim, *layout))

    def _note(self, tensor: torch.Tensor, line: _Line) -> None:
        lines = self._lines.setdefault(storage_id(tensor), [])
        if line not in lines:
            lines.append(line)
