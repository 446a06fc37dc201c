"""Records as Lightning asks for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reprune.core.saving.arrays import StoredArrays
from reprune.recipes.run.options import Options
from reprune.recipes.run.processes import share_of
from reprune.recipes.run.torch_recipe import Data
from reprune.recipes.video.answers import VideoAnswers, said_of, store
from reprune.torch.training.distill import Teacher
from reprune.torch.training.distributed import processes, rank, summed
from reprune.youtube8m.records import count_records
from reprune.youtube8m.torch_loader import Batch, RecordDataset, RecordLoader


class Videos(Data):
    """Batches to train on and to measure on.

    Args:
        options: Which records, and how they are batched.
        offset: Added to the epoch, so that two parts of a run do not see the same order and windows.

    Raises:
        RecordError: A glob matches no file.
    """

    def __init__(self, options: Options, offset: int = 0) -> None:
        super().__init__()
        self.options = options
        self.offset = offset
        self._train = self._loader(options.train, training=True)
        self._validate = self._loader(options.validate, training=False)
        self._measured = self._loader(options.measured, training=False)
        self._answers: VideoAnswers | None = None
        self.start(0, 0)

    def start(self, epoch: int, batches: int) -> None:
        """Let training go on in an epoch, after that many of its batches."""
        self._train.set_epoch(self.offset + epoch)
        self._train.skip_batches(batches)

    def train_dataloader(self) -> SharedEpochs:
        """Shuffled random windows, other ones in every epoch."""
        return SharedEpochs(self._train, self._answers)

    def answer(self, teacher: Callable[[], nn.Module], folder: Path, device: torch.device) -> str:
        """See `Data.answer`; videos are asked about in the order of the files, each process about its share."""
        stored, longest = StoredArrays(folder / str(rank())), self.options.max_frames
        if stored.done:
            return ""
        loader = self._loader(self.options.train, training=False)
        batches = ((batch.frames.numpy(), batch.lengths.numpy()) for batch in loader)
        videos, full = store(stored, batches, partial(_ask, Teacher(teacher()), device), longest)
        return said_of(summed(videos), summed(full), longest)

    def learn(self, teacher: Callable[[], nn.Module], folder: Path, device: torch.device) -> None:
        """See `Data.learn`; other processes asked about videos that this one reads now."""
        parts = [StoredArrays(folder / str(process)) for process in range(processes())]
        self._answers = VideoAnswers(parts, partial(_ask, Teacher(teacher()), device))

    def val_dataloader(self) -> Epochs:
        """Records that are measured after every epoch."""
        return Epochs(self._validate)

    def test_dataloader(self) -> Epochs:
        """Records that are measured at the end."""
        return Epochs(self._measured)

    def training_batches(self) -> int:
        """Batches of an epoch, but for damaged records."""
        return math.ceil(count_records(self.options.train) / self.options.batch_size)

    def calibration(self, model: nn.Module, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs of the model from the training records, as many batches as the options say."""
        loader = self._loader(self.options.train, training=True, whole=True)
        for index, batch in enumerate(loader):
            if index == self.options.calibration_batches:
                return
            yield batch.frames.to(device), batch.lengths

    def example(self) -> tuple[Tensor, Tensor]:
        """A few of the first training videos, as the model takes them."""
        batch = next(iter(self._loader(self.options.train, training=False, whole=True)))
        return batch.frames[:2], batch.lengths[:2]

    def sample(self) -> tuple[Tensor, Tensor]:
        """The longest of the first measured videos, as the model takes it."""
        batch = next(iter(self._loader(self.options.measured, training=False, whole=True)))
        which = int(batch.lengths.argmax())
        return batch.frames[which : which + 1], batch.lengths[which : which + 1]

    def _loader(self, paths: tuple[str, ...], *, training: bool, whole: bool = False) -> RecordLoader:
        options = self.options
        dataset = RecordDataset(
            paths,
            classes=options.classes,
            batch_size=options.batch_size if whole else share_of(options),
            features=options.features,
            max_frames=options.max_frames,
            window="random" if training else "first",
            shuffle=training,
            seed=options.seed,
            on_error=options.on_error,
            whole=whole,
        )
        return RecordLoader(dataset, workers=options.workers, pin_memory=torch.cuda.is_available())


class Epochs:
    """The passes of a loader, and nothing of its position.

    Lightning reads one batch ahead and would save the loader's own position, which is one too far; `Checkpoints` keeps
    the right one.
    """

    def __init__(self, loader: RecordLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)


def _ask(teacher: Teacher, device: torch.device, frames: NDArray[Any], lengths: NDArray[Any]) -> NDArray[Any]:
    """Logits of videos."""
    logits: Tensor = teacher(torch.from_numpy(frames).to(device), torch.from_numpy(lengths))
    return logits.float().cpu().numpy()


class Share(NamedTuple):
    """What a process has of a step: its videos, None where it has none left, and how many all processes have.

    `answers` are a dense model's logits (B × classes), if they are learned.
    """

    batch: Batch | None
    videos: int
    answers: Tensor | None = None


class SharedEpochs:
    """The passes of a loader, in step with the other processes: each record once, and as many steps for all of them.

    Args:
        loader: The loader.
        answers: A dense model's, if they are learned.
    """

    def __init__(self, loader: RecordLoader, answers: VideoAnswers | None = None) -> None:
        self._epochs, self._answers = Epochs(loader), answers

    def __iter__(self) -> Iterator[Share]:
        batches = iter(self._epochs)
        while True:
            batch = next(batches, None)
            videos = summed(0 if batch is None else len(batch.lengths))
            if not videos:
                return
            if batch is None or self._answers is None:
                yield Share(batch, videos)
            else:
                answers = self._answers(batch.frames.numpy(), batch.lengths.numpy())
                yield Share(batch, videos, torch.from_numpy(answers))
