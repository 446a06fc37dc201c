"""Passes that leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from reprune.core.evidence.passes import Forward
from reprune.torch.tracing.running.calling import call
from reprune.torch.tracing.running.randomness import OwnRandomness, own_randomness
from reprune.torch.tracing.running.training_pass import training_mode


@contextmanager
def apart(model: nn.Module, seed: int = 0, *, train: bool = False) -> Iterator[OwnRandomness]:
    """In this context a private model runs in one mode, on random numbers of its own; gives what tells of these.

    Args:
        model: A private copy (`duplicate`): what a pass leaves behind in a model, it leaves in this one.
        seed: Seed of what the model draws at random.
        train: Run in training mode, rather than in evaluation mode.
    """
    with training_mode(model, train), own_randomness(seed) as drawn:
        yield drawn


def run_apart(
    model: nn.Module, batch: Any, forward: Forward | None = None, seed: int = 0, *, train: bool = False
) -> Any:
    """What a model answers; what it writes into the batch or draws at random is seen by nobody else.

    Args:
        model: See `apart`.
        batch: Inputs as the model takes them.
        forward: Replaces `model(batch)`.
        seed: See `apart`.
        train: See `apart`.
    """
    with apart(model, seed, train=train):
        return call(model, batch, forward)
