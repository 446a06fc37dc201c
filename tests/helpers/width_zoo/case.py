"""The registry of models with widths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tests.helpers.torch_zoo.case import frames

WIDTH_CASES: dict[str, WidthCase] = {}


@dataclass(frozen=True, eq=False)
class WidthCase:
    """A model, its batches and what is expected of its trace.

    Attributes:
        name: Name of the model.
        build: Makes the model.
        batch: Inputs for `batch(sequences, steps)`.
        free: Units of every layer that can be pruned.
        pins: All other layers, with a part of the reason.
        coupled: Sets of layers that must keep the same units.
        approximate: Whether removal is known not to be exact.
        steps: Whether the number of steps may differ from that of the example.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int, int], Any]
    free: dict[str, int]
    pins: dict[str, str]
    coupled: tuple[tuple[str, ...], ...]
    approximate: bool
    steps: bool

    def __repr__(self) -> str:
        return self.name


def case(
    free: dict[str, int],
    batch: Callable[[int, int], Any] = frames,
    *,
    pins: dict[str, str] | None = None,
    coupled: tuple[tuple[str, ...], ...] = (),
    approximate: bool = False,
    steps: bool = True,
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a model class; its `out` is what the model returns and stays."""

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        WIDTH_CASES[kind.__name__] = WidthCase(
            kind.__name__, kind, batch, free, pins or {}, coupled, approximate, steps
        )
        return kind

    return register
