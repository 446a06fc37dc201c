"""What tensors were computed from: data, and how many applications in a row of each weight.

A weight is recurrent when it is applied to what it helped to produce, and its recurrence is driven when something new
from outside joins on the way round. Layers that two inputs share are not recurrent; layers that are applied to one
input again and again (weights tied over depth) are not driven. Neither holds hidden units.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from reprune.torch.tracing.labels import has_storage, storage_id

Piece = tuple[str, int]
"""A parameter's name, and where in it the piece that is applied begins."""
_DATA: Piece = "", 0


class Provenance:
    """Depths of every tensor seen so far.

    Attributes:
        recurrent: Names of the weights that were applied to what they helped to produce.
        driven: Names of those that something from outside joined in between.
    """

    def __init__(self) -> None:
        self.recurrent: set[str] = set()
        self.driven: set[str] = set()
        # A weak reference keeps the identity of a storage from being given away, but not its memory.
        self._depths: dict[int, tuple[StorageWeakRef, dict[Piece, int]]] = {}

    def follow(self, inputs: Sequence[torch.Tensor], outputs: Iterable[torch.Tensor], weights: Iterable[Piece]) -> None:
        """One operation ran.

        Args:
            inputs: The tensors that it was given, but for parameters.
            outputs: The tensors that it returned.
            weights: The parameters, or pieces of them, that it was given.
        """
        given = [self._of(tensor) for tensor in inputs]
        pieces = {*weights, *(piece for held in given if _DATA not in held for piece in held)}
        data = [held for held in given if _DATA in held]
        merged: dict[Piece, int] = {}
        for held in given:
            for piece, depth in held.items():
                merged[piece] = max(merged.get(piece, 0), depth)
        if len(data) > 1:
            self._join(data, merged)
        for piece in pieces:
            if any(piece in held for held in data):
                self.recurrent.add(piece[0])
            merged[piece] = merged.get(piece, 0) + bool(data)
        for tensor in outputs:
            if has_storage(tensor):
                weak = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
                self._depths[storage_id(tensor)] = weak, merged

    def is_data(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor depends on what came from outside, rather than on constants and weights alone."""
        return _DATA in self._of(tensor)

    def _of(self, tensor: torch.Tensor) -> dict[Piece, int]:
        """Depths of a tensor; what no operation made came from outside."""
        found = self._depths.get(storage_id(tensor))
        return {_DATA: 0} if found is None else found[1]

    def _join(self, data: Sequence[dict[Piece, int]], merged: dict[Piece, int]) -> None:
        """Something from outside joins what weights were applied to twice."""
        for piece, depth in merged.items():
            if depth > 1 and piece[0] not in self.driven and any(piece not in held for held in data):
                self.driven.add(piece[0])
