"""Tensors without units that are repeated as often as an attribute says: masks and indices, `m.expand(-1, -1, self.n)`.

What they meet later shows what the attribute is the size of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from reprune.torch.tracing.labels import Ids, lines, storage_id, varies
from reprune.torch.tracing.sizes.sizes import Expression


class Widened:
    """Such tensors, by their layout in memory: other views of it are as long as they were."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[Any, ...], tuple[torch.Tensor, dict[int, Expression]]] = {}

    def add(self, tensor: torch.Tensor, dim: int, expression: Expression) -> None:
        """A tensor is as long as this along an axis, which is counted from the last one: -1, -2, …"""
        self._sizes.setdefault(_layout(tensor), (tensor, {}))[1][dim] = expression

    def meeting(self, tensor: torch.Tensor, units: torch.Tensor) -> Iterator[tuple[Expression, Ids]]:
        """Labels of units that a tensor meets position by position along such an axis, and its size."""
        _, sizes = self._sizes.get(_layout(tensor), (tensor, {}))
        for dim, expression in sizes.items():
            if -dim <= units.ndim and varies(units, dim):
                for line in lines(units, dim):
                    yield expression, line


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return storage_id(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
