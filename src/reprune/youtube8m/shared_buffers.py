"""Buffers in shared memory that worker processes fill and the main process hands back by letting go of them.

A fresh block of shared memory costs a page fault for every 4 kB, several times what reading the records into it costs,
and PyTorch's own transport takes a fresh one for every batch. Here a buffer is filled again once nobody looks at it.
"""

from __future__ import annotations

import math
import weakref
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_WORKERS = 256
"""How many workers one loader can have."""

_SLOTS = 32
_FREE, _SENT, _OPEN = 0, 1, 2


class Parcel(NamedTuple):
    """What travels from a worker to the main process in place of an array.

    Attributes:
        worker: Who sent it.
        slot: Which of the worker's buffers holds it; −1 for one that is used only once.
        shape: The array's shape.
        buffer: The buffer, where the main process does not have it yet.
    """

    worker: int
    slot: int
    shape: tuple[int, ...]
    buffer: Tensor | None


class SharedBuffers:
    """The buffers of all workers of one loader. Every process holds a copy of this object; the states are shared.

    Args:
        size: Bytes per buffer; memory is taken only for what was ever written.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._states = torch.zeros(MAX_WORKERS, _SLOTS, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._known = torch.zeros(MAX_WORKERS, _SLOTS, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]
        self._own: dict[tuple[int, int], Tensor] = {}  # in a worker, by worker and slot
        self._opened: dict[tuple[int, int], NDArray[np.uint8]] = {}  # in the main process, likewise

    def begin(self, worker: int) -> None:
        """In a worker, at the start of a pass: take back what a pass that was given up had sent and nobody opened."""
        states = self._states[worker]
        states[states == _SENT] = _FREE

    def pack(self, worker: int, shape: tuple[int, ...]) -> tuple[Parcel, NDArray[np.uint8]]:
        """In a worker: return a parcel and the array, of at most `size` bytes, to fill before sending it."""
        free = np.flatnonzero(self._states[worker].numpy() == _FREE)
        slot = int(free[0]) if len(free) else -1
        if slot < 0:
            buffer = _shared(math.prod(shape))
        else:
            if (worker, slot) not in self._own:
                self._own[worker, slot] = _shared(self._size)
                self._known[worker, slot] = False  # it may be from a worker that this one has replaced
            buffer = self._own[worker, slot]
            self._states[worker, slot] = _SENT
        sent = None if slot >= 0 and self._known[worker, slot] else buffer
        return Parcel(worker, slot, shape, sent), buffer.numpy()[: math.prod(shape)].reshape(shape)

    def unpack(self, parcel: Parcel) -> Tensor:
        """In the main process: return the array. Its buffer is free again once neither it nor a view of it is left."""
        worker, slot, shape, buffer = parcel
        if buffer is not None:
            array = buffer.numpy()
            if slot < 0:
                return buffer.view(shape)
            self._opened[worker, slot] = array
            self._known[worker, slot] = True
        view = self._opened[worker, slot][: math.prod(shape)].reshape(shape)
        self._states[worker, slot] = _OPEN
        # The tensor keeps exactly this array object alive, so the object's end is the end of every look at the buffer.
        weakref.finalize(view, _set_free, self._states, worker, slot).atexit = False
        return torch.from_numpy(view)


def _set_free(states: Tensor, worker: int, slot: int) -> None:
    states[worker, slot] = _FREE


def _shared(size: int) -> Tensor:
    # There is no public way to uninitialised shared memory; torch's own collate function goes this one.
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage)
