"""What consumers read: statistics of the features that arrive at a weight, units and others side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprune.core.errors import CalibrationWarning, warn
from reprune.core.evidence.moments import Moments, to_numpy
from reprune.core.layers import Consumer, Slot, Structure

Array = Any
Matrix = NDArray[np.float64]
Places = NDArray[np.int64]
Axis = tuple[str, int]

WIDEST = 8192
"""Features beyond which a consumer's joint covariance is not kept; it is taken to read its layers' responses."""
MANY = 4096
"""Outputs of consumers from which on estimates of how much they matter average out."""


def random_signs(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Numbers that are 1 or −1 at random: alike in every framework, so that plans are."""
    return rng.choice([-1.0, 1.0], size=shape)


class Importance:
    """How much the model's output depends on the outputs of its consumers, averaged over the batches of a pass.

    Args:
        outputs: How many outputs the consumers have. What a unit costs is a sum over them, so that the noise of random
            projections is small where there are many.

    Attributes:
        batches: How many batches were accounted for.
        sure: Whether a single projection of a few sequences says enough of a batch.
    """

    def __init__(self, outputs: int = 0) -> None:
        self.batches = 0
        self.sure = outputs >= MANY
        self._total: dict[Axis, Array] = {}

    @property
    def draws(self) -> int:
        """Random projections for the next batch: most of them come first, as a pass may be short."""
        return 1 if self.batches or self.sure else 4

    def add(self, found: Mapping[Axis, Array], batches: int) -> None:
        """What one batch says, which stands for so many."""
        self.batches += batches
        for key, value in found.items():
            self._total[key] = self._total.get(key, 0.0) + value * batches

    def mean(self) -> dict[Axis, Array]:
        """Mean over all batches, by the tensor and the axis of each consumer."""
        return {key: value / self.batches for key, value in self._total.items()}


class Statistics(dict[str, Moments]):
    """Moments of the responses, by layer.

    Attributes:
        readings: Moments of what consumers read, by tensor and axis; empty unless they were asked for.
        fed: What recurrent weights read from the responses instead of the last ones, likewise.
        answers: Whose readings hold a layer's responses, by layer.
    """

    def __init__(self, structure: Structure) -> None:
        super().__init__({name: Moments(name, layer.units) for name, layer in structure.layers.items()})
        self.readings: dict[Axis, SplitMoments] = {}
        self.fed: dict[Axis, FeedBack] = {}
        self.answers: dict[str, Axis] = {}


class SplitMoments:
    """Moments of the same features in two halves, so that what is fitted on one can be judged on the other."""

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self.halves = (Moments(name, size), Moments(name, size))

    @property
    def count(self) -> int:
        """Rows that were added."""
        return sum(half.count for half in self.halves)

    def update(self, rows: Array) -> None:
        """Add rows (n × size): the first half of them to one half, the rest to the other."""
        middle = (rows.shape[0] + 1) // 2
        self.halves[0].update(rows[:middle])
        self.halves[1].update(rows[middle:])

    def without(self, part: SplitMoments) -> SplitMoments:
        """Moments of the rows added, less those of `part`, which must have been added in the same portions."""
        rest = SplitMoments(self.halves[0].name, self.size)
        first, second = (half.without(gone) for half, gone in zip(self.halves, part.halves, strict=True))
        rest.halves = (first, second)
        return rest

    def merged(self) -> Moments:
        """Moments of all rows."""
        both = Moments(self.halves[0].name, self.size)
        for half in self.halves:
            both.merge(half)
        return both


class FeedBack:
    """What tells the states that a recurrent weight reads from the responses of its layer.

    It reads the states before the first steps, and those after the last ones it does not.

    Attributes:
        first: Moments of the states before the first steps.
        last: Moments of the responses of the last steps.
    """

    def __init__(self, name: str, size: int) -> None:
        self.first, self.last = Moments(name, size), Moments(name, size)

    def update(self, first: Array, last: Array) -> None:
        """Add the states of some sequences (n × size)."""
        self.first.update(first)
        self.last.update(last)


@dataclass(frozen=True)
class SecondMoments:
    """Mean and second moment of features, about the mean where a bias can take it up and about zero where none can.

    Attributes:
        mean: Mean (n); zeros without a bias.
        matrix: Covariance, or without a bias the raw second moment (n × n).
    """

    mean: Matrix
    matrix: Matrix

    @classmethod
    def of(cls, moments: Moments, *, centred: bool) -> SecondMoments:
        """Of accumulated moments."""
        mean, covariance = to_numpy(moments.mean), to_numpy(moments.covariance)
        return cls(mean, covariance) if centred else cls(np.zeros_like(mean), covariance + np.outer(mean, mean))


class Reading:
    """A weight that reads units, with the statistics of what it reads.

    Attributes:
        consumer: The weight, its contracted axis and its bias.
        slot: Which positions of that axis hold which units.
        rows: Number of rows that were read.
    """

    def __init__(
        self,
        consumer: Consumer,
        slot: Slot,
        whole: Sequence[Moments],
        weight: Array,
        gradient: Array | None = None,
        fed: FeedBack | None = None,
    ) -> None:
        self.consumer = consumer
        self.slot = slot
        self.rows = sum(half.count for half in whole)
        self._whole = whole
        self._weight = weight
        self._gradient = gradient
        self._fed = fed

    @property
    def source(self) -> tuple[int, bool]:
        """Equal for readings that have the very same `moments`."""
        return id(self._whole[0]), self.consumer.bias is not None

    @property
    def exact_source(self) -> tuple[object, ...]:
        """Equal for readings that have the very same `exact` ones."""
        return *self.source, id(self._fed)

    @cached_property
    def moments(self) -> SecondMoments:
        """Of all rows; of a recurrent weight, those of its layer's responses, which it shares with other readers."""
        return SecondMoments.of(self._merged(), centred=self.consumer.bias is not None)

    @cached_property
    def exact(self) -> SecondMoments:
        """Of all rows; of a recurrent weight, those of the states that it reads."""
        if self._fed is None:
            return self.moments
        read = self._merged().without(self._fed.last)
        read.merge(self._fed.first)
        return SecondMoments.of(read, centred=self.consumer.bias is not None)

    def _merged(self) -> Moments:
        both = Moments(self.slot.tensor, self.slot.size)
        for half in self._whole:
            both.merge(half)
        return both

    @cached_property
    def halves(self) -> tuple[SecondMoments, SecondMoments] | None:
        """Of the two halves, or None when there is only one row."""
        if len(self._whole) < 2 or any(half.count == 0 for half in self._whole):
            return None
        first, second = (SecondMoments.of(half, centred=self.consumer.bias is not None) for half in self._whole)
        return first, second

    @cached_property
    def gram(self) -> Matrix:
        """Products of the weight's columns with each other (n × n): G Gᵀ with one row of G per feature.

        Where it is known how much the model's output depends on the consumer's outputs, these count accordingly.
        """
        weight = np.moveaxis(to_numpy(self._weight), self.consumer.axis, 0)
        if self._gradient is not None:
            # The squared gradient of the weight, over the features, is that of its output times their mean square.
            moments = self.moments
            square = float(np.trace(moments.matrix) + moments.mean @ moments.mean)
            weight = weight * np.sqrt(to_numpy(self._gradient) / max(square, np.finfo(np.float64).tiny))
        columns = weight.reshape(self.slot.size, -1)
        return np.asarray(columns @ columns.T)


def readings(
    structure: Structure,
    tensors: Mapping[str, Array],
    responses: Mapping[str, Moments],
    observed: Mapping[Axis, SplitMoments],
    gradients: Mapping[Axis, Array] | None = None,
    fed: Mapping[Axis, FeedBack] | None = None,
) -> list[Reading]:
    """All consumers with what they read.

    Where a consumer's own input was not observed, it is taken to read its layers' responses, each for itself.
    `gradients` says how much the model's output depends on each consumer's outputs: squared gradients of a projection
    of the output with respect to the weight, summed over the contracted axis. `fed` tells what recurrent weights read
    from their layers' responses.
    """
    slots = {(slot.tensor, slot.axis): slot for slot in structure.slots}
    found = []
    for consumer in structure.consumers:
        slot = slots[consumer.tensor, consumer.axis]
        split = observed.get((consumer.tensor, consumer.axis))
        if split is None or split.count == 0:
            whole: Sequence[Moments] = [_from_responses(slot, responses)]
        else:
            whole = split.halves
        gradient, feed = ((given or {}).get((consumer.tensor, consumer.axis)) for given in (gradients, fed))
        found.append(Reading(consumer, slot, whole, tensors[consumer.tensor], gradient, feed))
    _warn_if_few(found)
    return found


def _warn_if_few(found: Sequence[Reading]) -> None:
    """Below one row per feature the covariance has no inverse, and what is rebuilt from it is mostly the ridge."""
    few = [reading for reading in found if reading.rows < reading.slot.size]
    if few:
        worst = min(few, key=lambda reading: reading.rows / reading.slot.size)
        warn(
            f"{len(few)} of {len(found)} consumers were calibrated on fewer rows than they have features; "
            f"{worst.slot.tensor} read {worst.rows} rows of {worst.slot.size} features. Give more batches: about ten "
            "rows per feature.",
            CalibrationWarning,
        )


def _from_responses(slot: Slot, responses: Mapping[str, Moments]) -> Moments:
    moments = Moments(slot.tensor, slot.size)
    mean, covariance, count = np.zeros(slot.size), np.zeros((slot.size, slot.size)), 0
    for span in slot.spans:
        own = responses[span.layer]
        units = slice(span.unit, span.unit + span.units)
        held_mean, held = to_numpy(own.mean)[units], to_numpy(own.covariance)[units, units]
        for offset in range(span.each):
            places = span.start + np.arange(span.units) * span.each + offset
            mean[places] = held_mean
            covariance[np.ix_(places, places)] = held
        count = max(count, own.count)
    moments.restore({"count": count, "mean": mean, "scatter": covariance * count})
    return moments
