"""Statistics of what consumers read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from reprune.core.evidence.moments import Moments
from reprune.core.evidence.readings import WIDEST, Axis, FeedBack, SplitMoments
from reprune.core.evidence.widths import responses_in
from reprune.core.layers import Slot, Structure
from reprune.torch.calibration.answers import Answers, See, readers, rows, watch_declared
from reprune.torch.calibration.watch import Seen, watch
from reprune.torch.surgery.apply import named_tensors


class ReadingWatcher:
    """Accumulates what arrives at each consumer; consumers that read the very same tensors share their moments."""

    def __init__(
        self,
        structure: Structure,
        layers: Answers,
        into: dict[Axis, SplitMoments],
        answers: dict[str, Axis],
        fed: dict[Axis, FeedBack] | None,
    ) -> None:
        consumers = {(consumer.tensor, consumer.axis) for consumer in structure.consumers}
        slots = {(slot.tensor, slot.axis): slot for slot in structure.slots if slot.size <= WIDEST}
        self._slots = {axis: slot for axis, slot in slots.items() if axis in consumers}
        self._layers = layers
        self._into, self._answers, self._fed = into, answers, fed
        # What every object of moments has seen in this pass, and how much of that each consumer has read.
        self._seen: list[tuple[SplitMoments, list[_Features]]] = []
        self._read: dict[Axis, int] = {}

    @property
    def axes(self) -> list[Axis]:
        """The weights that are to be watched."""
        return list(dict.fromkeys([*self._slots, *self._layers.axes]))

    def read(self, seen: Seen) -> None:
        """Account for features that arrived at a consumer."""
        key, slot = seen.axis, self._slots.get(seen.axis)
        if slot is None or seen.features.shape[-1] < slot.size:
            self._layers.read(seen)
            return
        answering = self._layers.of(seen)
        self._answers.update({name: key for name, _ in answering})
        part = _Features(rows(seen.features), slot, padded=not answering)
        if key not in self._into:
            self._into[key] = self._new(part)
        read = self._read.setdefault(key, 0)
        self._read[key] += 1
        parts = self._seen_by(self._into[key])
        if read < len(parts):
            if parts[read].is_same(part):
                return
            parts = self._separate(key, read)
        self._into[key].update(part.valid())
        parts.append(part)

    def feed_back(self, axis: Axis, first: torch.Tensor, last: torch.Tensor) -> None:
        """Account for a recurrent weight's states before the first and after the last steps (sequences × units)."""
        slot = self._slots.get(axis)
        if slot is not None and self._fed is not None:
            self._fed.setdefault(axis, FeedBack(slot.tensor, slot.size)).update(first, last)

    def end_pass(self) -> None:
        """Let go of a pass's tensors; who has read less than those it shared with is from here on by itself."""
        for moments, parts in list(self._seen):
            for key in [key for key, held in self._into.items() if held is moments]:
                if self._read.get(key, 0) < len(parts):
                    self._separate(key, self._read.get(key, 0))
        self._seen, self._read = [], {}

    def _seen_by(self, moments: SplitMoments) -> list[_Features]:
        found = next((parts for held, parts in self._seen if held is moments), None)
        if found is None:
            found = []
            self._seen.append((moments, found))
        return found

    def _new(self, part: _Features) -> SplitMoments:
        """Moments for a consumer without any: those of others that have read just this, or its own."""
        for moments, parts in self._seen:
            if len(parts) == 1 and moments.count == len(parts[0].valid()) and parts[0].is_same(part):
                return moments
        return SplitMoments(part.slot.tensor, part.slot.size)

    def _separate(self, key: Axis, read: int) -> list[_Features]:
        """Give a consumer moments of its own: of what it shared with others, less what it has not read in this pass."""
        shared = self._into[key]
        parts, others = self._seen_by(shared), SplitMoments(key[0], shared.size)
        for part in parts[read:]:
            # What was written over since is not known any more, and stays in.
            if not part.changed:
                others.update(part.valid())
        self._into[key] = shared.without(others)
        self._seen.append((self._into[key], parts[:read]))
        return self._seen[-1][1]


class _Features:
    """Features that were read at once (n × features).

    Args:
        data: The rows.
        slot: Which of them are units.
        padded: Whether rows of zeros may stand for steps that a sequence does not have.
    """

    def __init__(self, data: torch.Tensor, slot: Slot, *, padded: bool) -> None:
        self.data = data
        self.slot = slot
        self._padded = padded
        self._version = _version(data)

    @property
    def changed(self) -> bool:
        """Whether something was written into the tensor since."""
        return _version(self.data) != self._version

    def is_same(self, later: _Features) -> bool:
        """Whether a consumer that reads now reads the same."""
        one, other = self.data, later.data
        if self.changed or one.shape != other.shape or one.device != other.device:
            return False
        if self._padded != later._padded and len(self.valid()) != len(later.valid()):
            return False
        # Comparing costs one pass, the covariance that it may save costs as many as there are features.
        return (one.data_ptr() == other.data_ptr() and one.stride() == other.stride()) or torch.equal(one, other)

    def valid(self) -> torch.Tensor:
        """Rows without padding: exact zeros in all units at once, unless the layer never answers anything else."""
        if not self._padded:
            return self.data
        places = torch.cat([torch.arange(s.start, s.start + s.units * s.each) for s in self.slot.spans])
        answered = (self.data[:, places.to(self.data.device)] != 0).any(1)
        return self.data[answered] if bool(answered.any()) and not bool(answered.all()) else self.data


def _version(data: torch.Tensor) -> int:
    return 0 if data.is_inference() else data._version


@contextmanager
def watch_readings(
    model: nn.Module,
    structure: Structure,
    into: dict[Axis, SplitMoments],
    answers: dict[str, Axis],
    see: See,
    fed: dict[Axis, FeedBack] | None = None,
) -> Iterator[None]:
    """Within this context and thread, forward passes account for what every consumer reads.

    Args:
        model: The model.
        structure: What `trace` found in it.
        into: What is added to.
        answers: Told whose readings hold the responses of a layer.
        see: Told the responses of layers whose own weights do not read them all at once.
        fed: What recurrent weights read instead of the last responses, added to likewise.
    """
    watcher = ReadingWatcher(structure, Answers(model, structure, see), into, answers, fed)
    with watch_declared(model, structure, see), watch(named_tensors(model), watcher.axes, watcher):
        yield
        watcher.end_pass()


def responses(structure: Structure, readings: dict[Axis, SplitMoments], answers: dict[str, Axis]) -> dict[str, Moments]:
    """Moments of the responses, of the layers whose own weights have read them all at once."""
    found = {}
    for name, axis in answers.items():
        shown = next(reader for reader in readers(structure, name) if (reader.slot.tensor, reader.slot.axis) == axis)
        found[name] = responses_in(readings[axis].merged(), name, shown)
    return found
