"""The registry of the zoo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

CASES: dict[str, Case] = {}


@dataclass(frozen=True, eq=False)
class Case:
    """A model, its batches and what is expected of its trace.

    Attributes:
        name: Name of the wiring.
        build: Makes the model.
        batch: Inputs for `batch(sequences, steps)`; floating point ones take the model's dtype.
        pins: Layers that must stay, with a part of the reason; all others must be prunable.
        coupled: Sets of layers that must keep the same units.
        equal: Sets of layers that must keep the same number of units.
        approximate: Whether removal is known not to be exact.
        states: Layers of every state tensor that the model returns, in the order of its outputs.
        steps: Whether the number of steps may differ from that of the example.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int, int], Any]
    pins: dict[str, str]
    coupled: tuple[tuple[str, ...], ...]
    equal: tuple[tuple[str, ...], ...]
    approximate: bool
    states: tuple[tuple[str, ...], ...]
    steps: bool

    def __repr__(self) -> str:
        return self.name


def frames(sequences: int, steps: int) -> torch.Tensor:
    """Random features (sequences, steps, 5)."""
    return torch.randn(sequences, steps, 5)


def tokens(sequences: int, steps: int) -> torch.Tensor:
    """Random word indices (sequences, steps) below 11."""
    return torch.randint(0, 11, (sequences, steps))


def lengths(sequences: int, steps: int, *, sort: bool = False) -> torch.Tensor:
    """Lengths of which one is `steps`."""
    found = torch.randint(1, steps + 1, (sequences,))
    found[0] = steps
    return found.sort(descending=True).values if sort else found


def case(
    name: str | None = None,
    *args: Any,
    batch: Callable[[int, int], Any] = frames,
    pins: dict[str, str] | None = None,
    coupled: tuple[tuple[str, ...], ...] = (),
    equal: tuple[tuple[str, ...], ...] = (),
    approximate: bool = False,
    states: tuple[tuple[str, ...], ...] = (),
    steps: bool = True,
    **kwargs: Any,
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a model class; further arguments go to its constructor."""

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        label = name or kind.__name__
        assert label not in CASES, label
        CASES[label] = Case(
            label, lambda: kind(*args, **kwargs), batch, pins or {}, coupled, equal, approximate, states, steps
        )
        return kind

    return register
