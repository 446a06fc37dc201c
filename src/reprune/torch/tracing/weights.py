"""A model's weights by their memory, their elements numbered: which parameter is this, and which part of it?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from reprune.torch.tracing.labels import NONE, Ids, ShadowMemory, has_storage, storage_id

DERIVED = "computed:"
"""Names of weights that are computed from others begin like this."""
LAST = 1 << 38
"""Elements of weights are numbered below this."""


class Weights:
    """Parameters, buffers, and weights computed from them.

    Attributes:
        tensors: The weights by name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._by_storage: dict[int, list[str]] = {}
        self._base: dict[str, int] = {}
        base = 1
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.numel() == 0 or not has_storage(tensor):
                continue
            self.tensors[name] = tensor
            self._by_storage.setdefault(storage_id(tensor), []).append(name)
            self._base[name] = base
            base += tensor.numel()
        # Numbers from here on are free for weights that are computed from others.
        self._starts = np.array([*self._base.values(), base, LAST])
        self._names = list(self._base)

    def hold(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is a view of a parameter or buffer."""
        return storage_id(tensor) in self._by_storage

    def owner(self, tensor: torch.Tensor) -> str | None:
        """Name of the parameter or buffer that the tensor is a view of, or None."""
        for name in self._by_storage.get(storage_id(tensor), ()):
            held = self.tensors[name]
            start = held.storage_offset()
            if start <= tensor.storage_offset() < start + held.numel():
                return name
        return None

    def derive(self, tensor: torch.Tensor) -> tuple[str, int]:
        """Number the elements of a weight that was computed; returns its name and its first number."""
        name, base = f"{DERIVED}{len(self._names)}", int(self._starts[-2])
        self.tensors[name], self._base[name] = tensor, base
        self._names.append(name)
        self._starts = np.insert(self._starts, -1, base + tensor.numel())
        return name, base

    def element_ids(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Labels of the elements of a parameter's view: their numbers, negative."""
        name = self.owner(tensor)
        if name is None:
            return None
        held = self.tensors[name]
        ids = -(self._base[name] + torch.arange(held.numel(), device=held.device)).view(held.shape)
        flat = torch.zeros(held.storage_offset() + _span(held), dtype=torch.int64, device=held.device)
        flat.as_strided(held.size(), held.stride(), held.storage_offset()).copy_(ids)
        return flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def along(self, weight: torch.Tensor, dim: int, memory: ShadowMemory) -> Iterator[tuple[tuple[str, int], Ids, Any]]:
        """Axes of parameters along `dim` of a weight: where its positions lie on each, and which of them do."""
        if weight.size(dim) < 2 and weight.numel() > 1 and not self.hold(weight):
            return
        rows = self._probe(weight, dim, memory)
        if rows is None:
            return
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        owners[rows == NONE] = -1
        for owner in np.unique(owners[owners >= 0]):
            name = self._names[owner]
            shape = self.tensors[name].shape
            mine = rows[(owners == owner).any(1)]
            held = np.searchsorted(self._starts, mine, side="right") - 1 == owner
            places = np.stack(np.unravel_index(np.where(held, mine - self._starts[owner], 0), shape))
            axis = _axis_along(places, held, shape, weight, dim)
            if axis is not None:
                yield (name, axis), *_along_all(places[axis], held)

    def merged(self, weight: torch.Tensor, dim: int, memory: ShadowMemory) -> tuple[str, dict[int, Ids]] | None:
        """The weight of which several axes lie along `dim`, and the position on each of them (length of `dim`).

        So it is where a product takes several axes at once: `einsum("bnki,nkio->bno", x, weights)`.
        """
        rows = self._probe(weight, dim % weight.ndim, memory)
        if rows is None or not rows.size or (rows == NONE).any():
            return None
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        if (owners != owners[0, 0]).any():
            return None
        name = self._names[owners[0, 0]]
        places = np.unravel_index(rows - self._starts[owners[0, 0]], self.tensors[name].shape)
        moving = {axis: at[0] for axis, at in enumerate(places) if (at[0] != at[0, 0]).any()}
        return (name, moving) if all((places[axis] == at).all() for axis, at in moving.items()) else None

    def factors(self, weight: torch.Tensor, dim: int, memory: ShadowMemory) -> list[tuple[torch.Tensor, int]]:
        """The weights and axes of which a dimension of a weight is made, the slowest first; often only itself."""
        name, places = self.merged(weight, dim, memory) or ("", {})
        axes = sorted(places, key=lambda axis: int(np.argmax(places[axis] != places[axis][0])), reverse=True)
        grid = [at.reshape(-1) for at in np.indices([self.tensors[name].shape[axis] for axis in axes])]
        whole = len(axes) > 1 and all(np.array_equal(places[axis], at) for axis, at in zip(axes, grid, strict=True))
        return [(self.tensors[name], axis) for axis in axes] if whole else [(weight, dim)]

    def _probe(self, weight: torch.Tensor, dim: int, memory: ShadowMemory) -> Ids | None:
        """Element ids on lines along `dim`: the first and last one of a parameter's view, all distinct owners' else."""
        name = self.owner(weight) if self.hold(weight) else None
        if name is not None:
            held = self.tensors[name]
            start = int(weight.storage_offset()) - int(held.storage_offset())
            offsets = start + weight.stride(dim) * np.arange(weight.size(dim))
            far = sum((weight.size(d) - 1) * weight.stride(d) for d in range(weight.ndim) if d != dim)
            both = np.stack([offsets, offsets + far])
            return _flat_index(both, held) + self._base[name]
        found = memory.get(weight)
        if found is None or not bool((found < NONE).any()):
            return None
        found = torch.where(found > -LAST, found, NONE)
        flat = found.movedim(dim, -1).reshape(-1, weight.size(dim))
        flat = flat[(flat != NONE).any(1)]
        return np.asarray(-flat.clamp(max=0).cpu().numpy())


def _along_all(places: Ids, held: Any) -> tuple[Ids, Any]:
    """Where positions lie on an axis, by whichever lines hold them: a diagonal has one position on each."""
    highest = np.where(held, places, -1).max(0)
    lowest = np.where(held, places, np.iinfo(np.int64).max).min(0)
    anywhere = held.any(0)
    if (highest[anywhere] == lowest[anywhere]).all():
        return np.where(anywhere, highest, 0), anywhere
    row = int(np.argmax(held.sum(1)))
    return places[row], held[row]


def _axis_along(places: Ids, held: Any, shape: torch.Size, weight: torch.Tensor, dim: int) -> int | None:
    """The one parameter axis whose coordinate moves along `dim`, the same way on every line."""
    moving = []
    for axis in range(len(shape)):
        coordinate = np.where(held, places[axis], -1)
        lines_ = coordinate[:, coordinate.max(0) >= 0]
        if lines_.shape[1] > 1 and (lines_[0] != lines_[0, 0]).any():
            moving.append(axis)
    if len(moving) == 1:
        return moving[0]
    if not moving and tuple(weight.shape) == tuple(shape):
        return dim
    if not moving and weight.ndim == 2 and tuple(weight.shape) == tuple(shape)[::-1]:
        return 1 - dim
    return None


def _span(tensor: torch.Tensor) -> int:
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))


def _flat_index(offsets: Ids, held: torch.Tensor) -> Ids:
    """Index in row-major order of the elements at these storage offsets."""
    if held.is_contiguous():
        return offsets
    index, rest = np.zeros_like(offsets), offsets.copy()
    order = sorted(range(held.ndim), key=held.stride().__getitem__, reverse=True)
    places = {}
    for d in order:
        places[d] = rest // max(held.stride(d), 1)
        rest = rest % max(held.stride(d), 1)
    for d in range(held.ndim):
        index = index * held.size(d) + places[d]
    return index
