"""Feed YouTube-8M records to a PyTorch training loop from a pool of worker processes.

Example:
    >>> loader = RecordLoader(RecordDataset("train*.tfrecord", classes=3862, batch_size=160), workers=4)
    >>> for epoch in range(20):
    ...     for batch in loader:
    ...         x = dequantize(batch.frames.to(device), batch.lengths.to(device))
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from reprune.core.errors import RecordError
from reprune.youtube8m.batches import MAX_FRAMES, Contents, Padding, batch_shape, contents, fill_frames
from reprune.youtube8m.epochs import Epochs, Window, in_batches
from reprune.youtube8m.records import DEFAULT_FEATURES, OnError, Record, StrPath, find_files
from reprune.youtube8m.shared_buffers import MAX_WORKERS, Parcel, SharedBuffers
from reprune.youtube8m.torch_batches import Batch, assemble, collate, dequantize

__all__ = ["MAX_FRAMES", "Batch", "RecordDataset", "RecordLoader", "collate", "dequantize"]


class _Sent(NamedTuple):
    """A batch on its way out of a worker: the frames lie in a shared buffer."""

    frames: Parcel
    rest: Contents


class RecordDataset(IterableDataset[Batch | _Sent | int]):
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
        whole: Read everything in this process, whatever other processes there are.
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
        whole: bool = False,
    ) -> None:
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
        self.padding: Padding = padding
        self.batches_per_epoch = batches_per_epoch
        self.whole = whole
        self._epochs = Epochs(
            self.files, classes, self.features, max_frames, window, shuffle, shuffle_buffer, seed, on_error
        )
        self.find_process()
        self.share_memory()

    def share_memory(self) -> None:
        """Set up, anew, what this process and its workers exchange."""
        # In shared memory, because workers that live on from epoch to epoch hold a copy of everything else.
        self._start = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._skipped = torch.zeros(MAX_WORKERS, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._buffers = SharedBuffers(self.batch_size * self.max_frames * sum(self.features.values()))

    def find_process(self) -> None:
        """Take rank and number of processes from torch.distributed, where it is initialised and shares are read."""
        distributed = not self.whole and torch.distributed.is_available() and torch.distributed.is_initialized()
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

    def open(self, item: Batch | _Sent) -> Batch:
        """Return the batch that a worker, or this process itself, has yielded."""
        if isinstance(item, Batch):
            return item
        return assemble(self._buffers.unpack(item.frames), item.rest, self.classes)

    def __iter__(self) -> Iterator[Batch | _Sent | int]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        self._buffers.begin(worker)
        epoch, done = self._start.tolist()
        # Batches come from the workers in turn, and a pass that goes on starts with worker 0: give it the next turn.
        turn = (worker + done) % workers
        consumer, consumers = self.rank * workers + turn, self.world_size * workers
        batches = in_batches(self._records(epoch, consumer, consumers, worker), self.batch_size)
        if self.batches_per_epoch is not None:
            batches = islice(batches, _share(self.batches_per_epoch, turn, workers))
        if done:
            share = _share(done, turn, workers)
            yield share - sum(1 for _ in islice(batches, share))
        for records in batches:
            if info is None:
                yield collate(records, self.classes, self.padding, self.max_frames)
            else:
                parcel, frames = self._buffers.pack(worker, batch_shape(records, self.padding, self.max_frames))
                fill_frames(frames, records, self.padding)
                yield _Sent(parcel, contents(records, self.padding, self.max_frames))

    def _records(self, epoch: int, consumer: int, consumers: int, worker: int) -> Iterator[Record]:
        """Yield this consumer's records: once, or over and over where the number of batches is given."""
        for repeat in count():
            before = int(self._skipped[worker])
            reader, windows = self._epochs.open(epoch, repeat, consumer, consumers)
            for record in windows:
                self._skipped[worker] = before + reader.skipped
                yield record
            self._skipped[worker] = before + reader.skipped
            if self.batches_per_epoch is None:
                return
            if not reader.read:
                raise RecordError(
                    f"share {consumer} of {consumers} of the files holds no record to fill its batches with: "
                    "use fewer workers or processes, or more records"
                )


class RecordLoader:
    """Iterate over a dataset's batches, read by worker processes; every pass is the next epoch.

    Under torch.distributed every process reads its own share. Where a run stopped is restored by `set_epoch` and
    `skip_batches`: the same seed, number of workers and number of processes give the same batches from there on.

    Args:
        dataset: What to read.
        workers: How many processes read, at most 256; 0 reads in this one.
        pin_memory: Copy batches into page-locked memory, from which they go to a GPU in the
            background. Without a GPU there is nothing to be gained, and nothing is done.
        prefetch: How many batches each worker reads ahead.

    Raises:
        ValueError: The number of workers is out of range.

    Example:
        >>> loader = RecordLoader(RecordDataset("train*.tfrecord", classes=3862, batch_size=160), workers=4)
        >>> loader.set_epoch(3)
        >>> loader.skip_batches(1200)
        >>> for batch in loader:
        ...     train(batch)
    """

    def __init__(self, dataset: RecordDataset, workers: int = 0, pin_memory: bool = False, prefetch: int = 2) -> None:
        if not 0 <= workers <= MAX_WORKERS:
            raise ValueError(f"workers must be from 0 to {MAX_WORKERS}, not {workers}")
        self.dataset = copy.copy(dataset)  # other loaders may read it at the same time
        self.dataset.share_memory()
        self.epoch = 0
        """The epoch that the next pass reads, or the current one inside a pass."""
        self._workers = workers
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._done = 0
        self._skip = 0
        self._loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_size=None,
            num_workers=workers,
            collate_fn=_unchanged,
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
        for item in batches:
            batch = self.dataset.open(item)
            if self._pin_memory:
                frames, lengths, labels = (part.pin_memory() for part in (batch.frames, batch.lengths, batch.labels))
                batch = Batch(frames, lengths, labels, batch.ids)
            self._done += 1
            yield batch
            del batch, item  # or they would hold their buffer for a batch longer than the consumer does
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


def _unchanged(batch: Any) -> Any:
    return batch
