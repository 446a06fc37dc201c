"""What an epoch reads, and in which order: the same for every framework. Imports none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from reprune.youtube8m.batches import MAX_FRAMES
from reprune.youtube8m.records import OnError, Record, RecordReader

Window = Literal["random", "first"]


@dataclass(frozen=True)
class Epochs:
    """The records of some files, epoch by epoch.

    Attributes:
        files: The files.
        classes: How many classes there are.
        features: The feature lists to read and their bytes per frame.
        max_frames: Longest window, in frames; what a longer video has beyond it is left out.
        window: "random" draws a contiguous window of a longer video; "first" takes its first frames, for evaluation.
        shuffle: Draw the order of files and, within `shuffle_buffer`, of records anew for every epoch.
        shuffle_buffer: How many records each consumer holds to draw from; about 0.3 MB each in YouTube-8M.
        seed: Together with the epoch it fixes order and windows, for a given number of consumers.
        on_error: "raise", or "skip" to leave damaged records out and count them.
    """

    files: Sequence[Path]
    classes: int
    features: Mapping[str, int]
    max_frames: int = MAX_FRAMES
    window: Window = "random"
    shuffle: bool = True
    shuffle_buffer: int = 512
    seed: int = 0
    on_error: OnError = "raise"

    def open(
        self, epoch: int, repeat: int = 0, consumer: int = 0, consumers: int = 1
    ) -> tuple[RecordReader, Iterator[Record]]:
        """One consumer's share of an epoch.

        Args:
            epoch: Which epoch.
            repeat: How often the consumer has been through its share in this epoch.
            consumer: Which consumer.
            consumers: How many share the records.

        Returns:
            The reader, which counts what it read and skipped, and the records in their order, cut to windows.

        Raises:
            RecordError: While iterating, when a record is damaged.
        """
        order = np.arange(len(self.files))
        if self.shuffle:  # the same order for all consumers, or they would not share the files
            order = np.random.default_rng([self.seed, epoch, repeat]).permutation(order)
        files = assign_files([self.files[i] for i in order.tolist()], consumer, consumers)
        reader = RecordReader(files, self.features, self.on_error, self.classes)
        rng = np.random.default_rng([self.seed, epoch, repeat, consumer])
        windows = (self._cut(record, rng) for record in reader)
        return reader, _shuffled(windows, self.shuffle_buffer, rng) if self.shuffle else windows

    def _cut(self, record: Record, rng: np.random.Generator) -> Record:
        surplus = len(record.frames) - self.max_frames
        if surplus <= 0:
            return record
        first = int(rng.integers(surplus + 1)) if self.window == "random" else 0
        # A copy, so that a long video does not stay in memory for its window.
        return Record(record.id, record.labels, record.frames[first : first + self.max_frames].copy())


def assign_files(files: Sequence[Path], consumer: int, consumers: int) -> list[tuple[Path, tuple[int, int]]]:
    """Return one consumer's share of the files, as `RecordReader` takes it.

    As many files as go round evenly are dealt out whole; every remaining one is split by record index over all
    consumers. So each record belongs to exactly one consumer, also where there are fewer files than consumers.

    Example:
        >>> assign_files([Path("a"), Path("b"), Path("c")], consumer=1, consumers=2)
        [(PosixPath('b'), (0, 1)), (PosixPath('c'), (1, 2))]
    """
    whole = len(files) // consumers * consumers
    shared = [(path, (consumer, consumers)) for path in files[whole:]]
    return [(path, (0, 1)) for path in files[consumer:whole:consumers]] + shared


def in_batches(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
    """Records in lists of `size`; the last may be shorter."""
    while batch := list(islice(records, size)):
        yield batch


def _shuffled(records: Iterator[Record], size: int, rng: np.random.Generator) -> Iterator[Record]:
    buffer = list(islice(records, size))
    for record in records:
        drawn = int(rng.integers(len(buffer)))
        yield buffer[drawn]
        buffer[drawn] = record
    for position in rng.permutation(len(buffer)):
        yield buffer[position]
