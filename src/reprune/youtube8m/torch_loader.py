"""Feed YouTube-8M records to a PyTorch training loop: a pool of worker processes, batches, dequantisation.

Example:
    >>> loader = RecordLoader(RecordDataset("train*.tfrecord", classes=3862, batch_size=160), workers=4)
    >>> for epoch in range(20):
    ...     for batch in loader:
    ...         x = dequantize(batch.frames.to(device), batch.lengths.to(device))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from reprune.core.errors import RecordError
from reprune.youtube8m.records import DEFAULT_FEATURES, OnError, Record, RecordReader, StrPath, find_files

MAX_FRAMES = 300
"""The paper's longest window, in frames (seconds, in YouTube-8M)."""

Window = Literal["random", "first"]
Padding = Literal["mask", "last"]

_SKIPPED_SLOTS = 256


class Batch(NamedTuple):
    """B videos of at most T frames.

    Attributes:
        frames: Quantised features, uint8, B × T × F; see `dequantize`.
        lengths: How many frames of each video are its own, int64, B.
        labels: bool, B × classes.
        ids: The videos' identifiers.
    """

    frames: Tensor
    lengths: Tensor
    labels: Tensor
    ids: list[str]


def dequantize(
    frames: Tensor, lengths: Tensor | None = None, normalize: bool = True, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Turn quantised frames into features, on the device they are on: x = q · 4/255 + 4/512 − 2.

    Args:
        frames: uint8, … × T × F.
        lengths: How many frames are valid, of shape …; the features of the others are 0. None for all.
        normalize: Scale every frame to unit L2 norm, as the paper does.
        dtype: Type of the result.

    Returns:
        Features, … × T × F.

    Example:
        >>> dequantize(torch.tensor([[0, 255]], dtype=torch.uint8), normalize=False)
        tensor([[-1.9922,  2.0078]])
    """
    features = frames.to(dtype) * (4 / 255) + (4 / 512 - 2)
    if normalize:
        features = torch.nn.functional.normalize(features, dim=-1)
    if lengths is not None:
        valid = torch.arange(frames.shape[-2], device=frames.device) < lengths[..., None]
        features = features * valid[..., None]
    return features


def collate(records: Sequence[Record], classes: int, padding: Padding = "mask", max_frames: int = MAX_FRAMES) -> Batch:
    """Put records of at most `max_frames` frames into one batch.

    Args:
        records: At least one, all with equally wide frames.
        classes: How many classes there are; every label is below.
        padding: "mask" pads with zeros to the longest record, and `lengths` says what is valid. "last" repeats each
            record's last frame up to `max_frames` and counts the repeated frames as valid, as the paper's code does.
        max_frames: The length that "last" pads to.
    """
    own = [len(record.frames) for record in records]
    T = max_frames if padding == "last" else max(own)
    batch = _empty(len(records), T, records[0].frames.shape[1])
    frames = batch.numpy()
    labels = np.zeros((len(records), classes), np.bool_)
    for row, (record, length) in enumerate(zip(records, own, strict=True)):
        frames[row, :length] = record.frames
        frames[row, length:] = record.frames[-1] if padding == "last" else 0
        labels[row, record.labels] = True
    lengths = torch.full((len(records),), T) if padding == "last" else torch.tensor(own)
    return Batch(batch, lengths, torch.from_numpy(labels), [record.id for record in records])


def _empty(*shape: int) -> Tensor:
    """Return an uninitialised uint8 tensor; in a worker in shared memory, which spares the copy on its way out."""
    # There is no public way to the latter; torch's own collate function goes this one.
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


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


class RecordDataset(IterableDataset[Batch | int]):
    """The records of some files as batches. `RecordLoader` shares them out over worker processes.

    Args:
        paths: A path or glob, or a list of them.
        classes: How many classes there are.
        batch_size: Videos per batch. The last batch of each worker may be smaller.
        features: The feature lists to read and their bytes per frame.
        max_frames: Longest window, in frames; what a longer video has beyond it is left out.
        window: "random" draws a contiguous window of a longer video; "first" takes its first frames, for evaluation.
        padding: "mask" or "last"; see `collate`.
        shuffle: Draw the order of files and, within `shuffle_buffer`, of records anew for every epoch.
        shuffle_buffer: How many records each worker holds to draw from; about 0.3 MB each in YouTube-8M.
        seed: Together with the epoch it fixes order and windows, for a given number of workers and processes.
        on_error: "raise", or "skip" to leave damaged records out and count them.
        batches_per_epoch: None reads every record once per epoch. A number gives every process exactly so many batches,
            starting over or stopping early where its share does not fit, as gradient synchronisation between several
            processes needs: `count_records(paths) // (batch_size * world_size)`.

    Raises:
        RecordError: A path matches no file; while iterating, a record is damaged.
        ValueError: An argument makes no sense.
    """

    def __init__(
        self,
        paths: StrPath | Sequence[StrPath],
        *,
        classes: int,
        batch_size: int,
        features: Mapping[str, int] = DEFAULT_FEATURES,
        max_frames: int = MAX_FRAMES,
        window: Window = "random",
        padding: Padding = "mask",
        shuffle: bool = True,
        shuffle_buffer: int = 512,
        seed: int = 0,
        on_error: OnError = "raise",
        batches_per_epoch: int | None = None,
    ) -> None:
        super().__init__()
        numbers = {
            "classes": classes,
            "batch_size": batch_size,
            "max_frames": max_frames,
            "shuffle_buffer": shuffle_buffer,
        }
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        if window not in ("random", "first") or padding not in ("mask", "last"):
            raise ValueError(
                f"window must be 'random' or 'first' and padding 'mask' or 'last', not {window!r}, {padding!r}"
            )
        self.files = find_files(paths)
        self.classes = classes
        self.batch_size = batch_size
        self.features = dict(features)
        self.max_frames = max_frames
        self.window = window
        self.padding: Padding = padding
        self.shuffle = shuffle
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.on_error: OnError = on_error
        self.batches_per_epoch = batches_per_epoch
        self.find_process()
        # In shared memory, because workers that live on from epoch to epoch hold a copy of everything else.
        self._start = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._skipped = torch.zeros(_SKIPPED_SLOTS, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def find_process(self) -> None:
        """Take rank and number of processes from torch.distributed, where it is initialised."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if distributed else 0
        self.world_size = torch.distributed.get_world_size() if distributed else 1

    def start(self, epoch: int, batches: int = 0) -> None:
        """Let the next pass be the given epoch without its first batches, counted over all workers of this process.

        With `batches` above 0, the first thing that every worker yields is an int: how many of the batches that it was
        to leave out it did not have, because it ran out of records before the others. `RecordLoader` makes up for them.
        """
        self._start[0], self._start[1] = epoch, batches
        self._skipped.zero_()

    @property
    def skipped(self) -> int:
        """How many damaged records the workers of this process left out in the current pass."""
        return int(self._skipped.sum())

    def __iter__(self) -> Iterator[Batch | int]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        epoch, done = self._start.tolist()
        # Batches come from the workers in turn, and a pass that goes on starts with worker 0: give it the next turn.
        turn = (worker + done) % workers
        batches = self._batches(epoch, self.rank * workers + turn, self.world_size * workers, worker)
        if self.batches_per_epoch is not None:
            batches = islice(batches, _share(self.batches_per_epoch, turn, workers))
        if done:
            share = _share(done, turn, workers)
            yield share - sum(1 for _ in islice(batches, share))
        for records in batches:
            yield collate(records, self.classes, self.padding, self.max_frames)

    def _batches(self, epoch: int, consumer: int, consumers: int, worker: int) -> Iterator[list[Record]]:
        records = self._records(epoch, consumer, consumers, worker)
        while batch := list(islice(records, self.batch_size)):
            yield batch

    def _records(self, epoch: int, consumer: int, consumers: int, worker: int) -> Iterator[Record]:
        """Yield this consumer's records: once, or over and over where the number of batches is given."""
        for repeat in count():
            order = np.arange(len(self.files))
            if self.shuffle:  # the same order for all consumers, or they would not share the files
                order = np.random.default_rng([self.seed, epoch, repeat]).permutation(order)
            files = assign_files([self.files[i] for i in order], consumer, consumers)
            reader = RecordReader(files, self.features, self.on_error, self.classes)
            rng = np.random.default_rng([self.seed, epoch, repeat, consumer])
            windows = (self._cut(record, rng) for record in self._counted(reader, worker % _SKIPPED_SLOTS))
            yield from _shuffled(windows, self.shuffle_buffer, rng) if self.shuffle else windows
            if self.batches_per_epoch is None:
                return
            if not reader.read:
                raise RecordError(
                    f"share {consumer} of {consumers} of the files holds no record to fill its batches with: "
                    "use fewer workers or processes, or more records"
                )

    def _counted(self, reader: RecordReader, slot: int) -> Iterator[Record]:
        """Pass records on and keep the shared count of skipped ones up to date."""
        before = int(self._skipped[slot])
        for record in reader:
            self._skipped[slot] = before + reader.skipped
            yield record
        self._skipped[slot] = before + reader.skipped

    def _cut(self, record: Record, rng: np.random.Generator) -> Record:
        surplus = len(record.frames) - self.max_frames
        if surplus <= 0:
            return record
        first = int(rng.integers(surplus + 1)) if self.window == "random" else 0
        # A copy, so that a long video does not stay in memory for its window.
        return Record(record.id, record.labels, record.frames[first : first + self.max_frames].copy())


class RecordLoader:
    """Iterate over a dataset's batches, read by worker processes; every pass is the next epoch.

    Under torch.distributed every process reads its own share. Where a run stopped is restored by `set_epoch` and
    `skip_batches`: the same seed, number of workers and number of processes give the same batches from there on.

    Args:
        dataset: What to read.
        workers: How many processes read; 0 reads in this one.
        pin_memory: Put batches into page-locked memory, for faster copies to a GPU.
        prefetch: How many batches each worker reads ahead.

    Example:
        >>> loader = RecordLoader(RecordDataset("train*.tfrecord", classes=3862, batch_size=160), workers=4)
        >>> loader.set_epoch(3)
        >>> loader.skip_batches(1200)
        >>> for batch in loader:
        ...     train(batch)
    """

    def __init__(self, dataset: RecordDataset, workers: int = 0, pin_memory: bool = False, prefetch: int = 2) -> None:
        self.dataset = dataset
        self.epoch = 0
        """The epoch that the next pass reads, or the current one inside a pass."""
        self._workers = workers
        self._done = 0
        self._skip = 0
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=pin_memory,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
        )

    def __iter__(self) -> Iterator[Batch]:
        self._done, self._skip = self._skip, 0
        self.dataset.find_process()
        self.dataset.start(self.epoch, self._done)
        batches = iter(self._loader)
        if self._done:
            # What one worker did not have to leave out, the others had delivered: their next batches in turn.
            missing = sum(next(batches) for _ in range(max(self._workers, 1)))
            for _ in islice(batches, missing):
                pass
        for batch in batches:
            self._done += 1
            yield batch
        self.epoch, self._done = self.epoch + 1, 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch, where it was given.

        Raises:
            TypeError: It was not: only reading tells.
        """
        if self.dataset.batches_per_epoch is None:
            raise TypeError("the number of batches is not known before they are read; give batches_per_epoch")
        return self.dataset.batches_per_epoch

    @property
    def skipped(self) -> int:
        """How many damaged records this process left out in the current pass (with `on_error="skip"`)."""
        return self.dataset.skipped

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass read this epoch."""
        self.epoch = epoch

    def skip_batches(self, batches: int) -> None:
        """Let the next pass leave out that many batches of its epoch: they are read, but not put together or sent."""
        if batches < 0:
            raise ValueError(f"batches must be at least 0, not {batches}")
        self._skip = batches

    def state_dict(self) -> dict[str, int]:
        """Return the position: epoch and batches handed out. A trainer that prefetches has trained on fewer."""
        return {
            "epoch": self.epoch,
            "batches": self._skip or self._done,
            "workers": self._workers,
            "world_size": self.dataset.world_size,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next pass go on from a saved position.

        Raises:
            ValueError: It was saved with another number of workers or processes, whose batches are others.
        """
        for name, now in (("workers", self._workers), ("world_size", self.dataset.world_size)):
            if state[name] != now:
                raise ValueError(
                    f"the position was saved with {name}={state[name]}, this run has {now}; use the same number"
                )
        self.set_epoch(state["epoch"])
        self.skip_batches(state["batches"])


def _share(batches: int, turn: int, workers: int) -> int:
    """Return how many of the first batches fall to one worker when all take turns."""
    return batches // workers + (turn < batches % workers)


def _shuffled(records: Iterator[Record], size: int, rng: np.random.Generator) -> Iterator[Record]:
    buffer = list(islice(records, size))
    for record in records:
        drawn = int(rng.integers(len(buffer)))
        yield buffer[drawn]
        buffer[drawn] = record
    for position in rng.permutation(len(buffer)):
        yield buffer[position]


def _unchanged(batch: Any) -> Any:
    return batch
