"""Response statistics from forward passes: mean and covariance of every layer's hidden state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from reprune.core.evidence.passes import Forward
from reprune.core.evidence.readings import Statistics
from reprune.core.layers import Structure
from reprune.torch.calibration.answers import See, rows, watch_responses
from reprune.torch.calibration.readings import responses, watch_readings
from reprune.torch.tracing.running.calling import call
from reprune.torch.tracing.running.copies import duplicate
from reprune.torch.tracing.running.isolation import apart


def observe(
    model: nn.Module,
    structure: Structure,
    batches: Iterable[Any],
    forward: Forward | None = None,
    *,
    readings: bool = False,
    share: bool = False,
    told: Callable[[Any], object] | None = None,
) -> Statistics:
    """Run the model over calibration batches in eval mode and gather response statistics.

    Args:
        model: The model; it is left as it was, a copy of it runs.
        structure: What `trace` found in it.
        batches: Inputs as the model takes them, one held at a time; they are left as they were.
        forward: Replaces `model(batch)`.
        readings: Gather what consumers read, too.
        share: Use the same memory for weights; only for a model that is private itself.
        told: Called with what the model returns for a batch, unless it drew random numbers on the way.

    Returns:
        Moments by layer, on the model's own device. Padding inside a `PackedSequence` never counts.
    """
    statistics, model = Statistics(structure), duplicate(model, share=share)
    for number, batch in enumerate(batches):
        with torch.no_grad(), gathering(model, structure, statistics, readings=readings):
            with apart(model, number) as drawn:
                output = call(model, batch, forward)
            if told is not None and not drawn.used:
                told(output)
    statistics.update(responses(structure, statistics.readings, statistics.answers))
    return statistics


@contextmanager
def gathering(model: nn.Module, structure: Structure, into: Statistics, *, readings: bool) -> Iterator[None]:
    """Within this context and thread, add what one forward pass shows."""
    see = adding(into)
    watched = (
        watch_readings(model, structure, into.readings, into.answers, see, into.fed)
        if readings
        else watch_responses(model, structure, see)
    )
    with watched:
        yield


@contextmanager
def gather(model: nn.Module, structure: Structure) -> Iterator[Statistics]:
    """Gather response statistics from whatever forward passes the model runs inside, training ones included.

    Passes of other threads are not seen.

    Example:
        >>> with gather(model, structure) as statistics:       # doctest: +SKIP
        ...     loss = criterion(model(x), y)
        >>> statistics["lstm:l0"].covariance                    # doctest: +SKIP
    """
    statistics = Statistics(structure)
    with watch_responses(model, structure, adding(statistics)):
        yield statistics


def adding(statistics: Statistics) -> See:
    """Adds the responses of layers to their statistics."""
    return lambda name, found, _: statistics[name].update(rows(found))
