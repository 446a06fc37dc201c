"""Labels: integers that name which unit an element came from, and the coupling of units by union-find."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Ids = NDArray[np.int64]

# Labels: 0 is none; positive ones name units; from TAG on they name sizes (`sizes.py`); negative ones name elements
# of parameters, so that a weight can still be recognised after it was copied, stacked or masked.
NONE = 0
TAG = 1 << 40


class Couplings:
    """Labels, merged into classes of units that must be removed together.

    Attributes:
        version: Changes whenever there are new labels or classes are merged.
    """

    def __init__(self) -> None:
        self.version = 0
        self._flat: Ids | None = None
        self._parent: Ids = np.zeros(1, dtype=np.int64)
        self._space: Ids = np.zeros(1, dtype=np.int64)

    def new(self, count: int) -> Ids:
        """Fresh labels (count) of one layer or axis, each in a class of its own."""
        start = len(self._parent)
        self._space = np.concatenate([self._space, np.full(count, self._space[-1] + 1)])
        labels = np.arange(start, start + count)
        self._parent = np.concatenate([self._parent, labels])
        self._changed()
        return labels

    def all(self) -> Ids:
        """Every label there is."""
        return np.arange(len(self._parent))

    def space(self, labels: Ids) -> Ids:
        """Which call of `new` made each label: labels of one layer or axis share a space."""
        return self._space[labels]

    def roots(self, labels: Ids) -> Ids:
        """The class of each label; 0 and everything that names no unit stay 0."""
        if self._flat is None:
            flat = self._parent
            while not np.array_equal(up := flat[flat], flat):
                flat = up
            self._flat = flat
        return np.asarray(self._flat[np.where((labels > NONE) & (labels < TAG), labels, NONE)])

    def _changed(self) -> None:
        self.version += 1
        self._flat = None

    def union(self, first: Ids, second: Ids) -> bool:
        """Couple `first[i]` with `second[i]` for every i; pairs without two units are passed over.

        Returns whether any two classes were merged.
        """
        one, two = self.roots(first), self.roots(second)
        open_pairs = (one != two) & (one > NONE) & (two > NONE)
        for a, b in zip(one[open_pairs].tolist(), two[open_pairs].tolist(), strict=True):
            a, b = self._find(a), self._find(b)
            self._parent[max(a, b)] = min(a, b)
        merged = bool(open_pairs.any())
        if merged:
            self._changed()
        return merged

    def _find(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = label = int(self._parent[self._parent[label]])
        return label


class _Whole(NamedTuple):
    """Labels of a tensor that is all of its storage, and how it lies there."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    contiguous: bool
    labels: torch.Tensor


class ShadowMemory:
    """Labels beside the elements of every storage, so that views and in-place writes need no rules of their own.

    Labels of a whole tensor are kept as they were given, broadcast axes at length one: those of a language model's
    scores are one line. They are written out when another view of the storage asks for them.
    """

    def __init__(self) -> None:
        self._whole: dict[tuple[int, int], _Whole] = {}
        self._flat: dict[tuple[int, int], torch.Tensor] = {}
        self._alive: dict[tuple[int, int], torch.UntypedStorage] = {}

    def get(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Labels of the tensor's elements (same shape), or None when it has none."""
        key = _key(tensor)
        if key in self._whole:
            size, stride, contiguous, labels = self._whole[key]
            if size == tensor.shape and stride == tensor.stride():
                return labels
            line = compact(labels)
            features = line.numel() == line.size(-1) == tensor.size(-1) if tensor.ndim and line.ndim else False
            if features and tensor.numel() == labels.numel() and tensor.is_contiguous() and contiguous:
                return line.view(-1).expand(tensor.shape)  # Rows in another arrangement: `view(T * B, H)`.
        flat = self._written_out(key)
        return None if flat is None else flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def set(self, tensor: torch.Tensor, labels: torch.Tensor | None) -> None:
        """Write labels (broadcast to the tensor's shape, moved to its device) beside its elements; None clears them."""
        if not has_storage(tensor):
            return
        key = _key(tensor)
        storage = tensor.untyped_storage()
        if tensor.numel() == 0 or (labels is None and key not in self._alive):
            return
        self.hold(tensor)
        if tensor.numel() * tensor.element_size() == storage.nbytes() and 0 not in tensor.stride():
            self._flat.pop(key, None)
            self._whole.pop(key, None)
            if labels is not None:
                # A copy: labels may be a view of another storage's, which can be written to later.
                kept = compact(labels).to(tensor.device).clone().expand(tensor.shape)
                self._whole[key] = _Whole(tensor.shape, tensor.stride(), tensor.is_contiguous(), kept)
            return
        if self._written_out(key) is None:
            size = storage.nbytes() // tensor.element_size()
            self._flat[key] = torch.zeros(size, dtype=torch.int64, device=tensor.device)
        view = self._flat[key].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
        if labels is None:
            view.zero_()
            return
        labels = labels.expand(tensor.shape)
        for dim, stride in enumerate(tensor.stride()):
            if stride == 0 and tensor.size(dim) > 1:
                view, labels = view.narrow(dim, 0, 1), labels.narrow(dim, 0, 1)
        view.copy_(labels)

    def hold(self, tensor: torch.Tensor) -> None:
        """Keep a storage: a key is an address, which must not be given to another storage while the trace lasts."""
        if has_storage(tensor):
            self._alive[_key(tensor)] = tensor.untyped_storage()

    def _written_out(self, key: tuple[int, int]) -> torch.Tensor | None:
        if key in self._whole:
            size, stride, _, labels = self._whole.pop(key)
            flat = torch.zeros(labels.numel(), dtype=torch.int64, device=labels.device)
            flat.as_strided(size, stride).copy_(labels)
            self._flat[key] = flat
        return self._flat.get(key)


def has_storage(tensor: torch.Tensor) -> bool:
    """Whether the tensor's elements lie side by side in one memory; those of sparse and nested tensors do not."""
    return tensor.layout is torch.strided and not tensor.is_nested


def storage_id(tensor: torch.Tensor) -> int:
    """Identity of the memory behind a tensor; 0 for one without (`has_storage`)."""
    return int(tensor.untyped_storage()._cdata) if has_storage(tensor) else 0


def _key(tensor: torch.Tensor) -> tuple[int, int]:
    return storage_id(tensor), tensor.element_size()


def compact(labels: torch.Tensor) -> torch.Tensor:
    """The labels with every broadcast axis at length one."""
    for dim, stride in enumerate(labels.stride()):
        if stride == 0 and labels.size(dim) > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def varies(labels: torch.Tensor, dim: int) -> bool:
    """Whether two different labels occur on some line along `dim`; elements without label do not count."""
    labels = compact(labels)
    if labels.size(dim) < 2:
        return False
    highest = labels.amax(dim)
    lowest = torch.where(labels == NONE, highest.unsqueeze(dim), labels).amin(dim)
    return bool((highest != lowest).any())


def squeeze_constant(labels: torch.Tensor, dims: list[int] | None = None) -> torch.Tensor:
    """The labels with every axis (of `dims`) along which they do not vary reduced to length 1."""
    for dim in range(labels.ndim) if dims is None else dims:
        if labels.size(dim) > 1 and labels.stride(dim) == 0:
            labels = labels.narrow(dim, 0, 1)
        elif labels.size(dim) > 1 and not varies(labels, dim):
            labels = labels.amax(dim, keepdim=True)
    return labels


def unit_ids(labels: torch.Tensor) -> Ids:
    """The distinct units among labels."""
    found = np.unique(squeeze_constant(labels).cpu().numpy())
    return np.asarray(found[(found > NONE) & (found < TAG)])


def lines(labels: torch.Tensor, dim: int) -> Ids:
    """The distinct lines of labels along `dim` (lines × length), those without any label left out."""
    flat = squeeze_constant(labels, [d for d in range(labels.ndim) if d != dim % labels.ndim])
    flat = flat.movedim(dim, -1).reshape(-1, labels.size(dim))
    flat = flat[(flat != NONE).any(1)]
    return np.asarray(np.unique(flat.cpu().numpy(), axis=0))
