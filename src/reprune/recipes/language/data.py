"""Text as a language model of PyTorch reads it: windows over streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reprune.core.answers.likely import CLASSES, LOGS, packed
from reprune.core.progress import told
from reprune.core.saving.arrays import StoredArrays
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.language.text import Numbers, streams_to_measure, streams_to_train
from reprune.recipes.language.written import Written, WrittenText, text_of
from reprune.recipes.run.processes import share_of
from reprune.recipes.run.torch_recipe import Data
from reprune.torch.training.distributed import processes, rank
from reprune.torch.training.likely import Likely, likely, unpacked


class Window(NamedTuple):
    """A piece of some streams: words T × B, and the words that follow each (`text.IGNORED` past a stream's end).

    `first` says that the streams begin here: the state before it is zero. `answers` are a dense model's, if they are
    learned, and `written` is as long a piece of what it wrote itself, if that is read as well.
    """

    words: Tensor
    following: Tensor
    first: bool
    answers: Likely | None = None
    written: Written | None = None


class Windows:
    """Passes over streams, window by window.

    Args:
        words: T × B.
        following: T × B.
        unroll: Length of a window; the last of a pass may be shorter.

    Attributes:
        answers: A dense model's answers to all words, as `answers_to` gives them, to come with the windows; or None.
        written: What a dense model wrote, to come with the windows, from pass to pass further on; or None.
        passes: How many were begun.
    """

    def __init__(self, words: Tensor, following: Tensor, unroll: int) -> None:
        self._words, self._following, self._unroll = words, following, unroll
        self._skipped = 0
        self.answers: StoredArrays | None = None
        self.written: WrittenText | None = None
        self.passes = 0

    @property
    def count(self) -> int:
        """How many a whole pass has; no `len`, from which Lightning would take that every pass has as many."""
        return -(-len(self._words) // self._unroll)

    def skip(self, windows: int) -> None:
        """Let the next pass leave out that many windows."""
        self._skipped = windows

    def __iter__(self) -> Iterator[Window]:
        first, self._skipped = self._skipped, 0
        before, self.passes = self.passes * self.count, self.passes + 1
        for start in range(first * self._unroll, len(self._words), self._unroll):
            piece = slice(start, start + self._unroll)
            words, number = self._words[piece].contiguous(), before + start // self._unroll
            yield Window(
                words,
                self._following[piece].contiguous(),
                start == 0,
                self._answers_to(piece),
                None if self.written is None else self.written.window(number, len(words)),
            )

    def _answers_to(self, piece: slice) -> Likely | None:
        if self.answers is None:
            return None
        return unpacked(self.answers[CLASSES][piece], self.answers[LOGS][piece])


@torch.no_grad()
def answers_to(windows: Windows, model: nn.Module, device: torch.device) -> Iterator[dict[str, NDArray[Any]]]:
    """What a model answers to windows one after the other, as it is stored: see `core.answers.likely`."""
    model.to(device).eval()
    state, rng = None, np.random.default_rng(0)
    for window in told("asking the dense model", windows, windows.count):
        logits, state = model(window.words.to(device), None if window.first else state)
        found = likely(logits, rng)
        yield packed(found.classes.cpu().numpy(), found.logs.cpu().numpy(), logits.shape[-1])


class Text(Data):
    """A text to train on, one to measure after every epoch, and one to measure at the end.

    Training cuts its text into `batch_size` streams of equal length and leaves out the fewer than `batch_size` words
    that do not go round. Measuring predicts every word but the first exactly once: its streams are as many, the last
    may be shorter.

    Args:
        options: Which texts, and how they are cut.
        read: The numbers of the words of a text, given its path (`Vocabulary.encode`).

    Raises:
        RecipeError: When a text cannot be read or is too short.
    """

    def __init__(self, options: LanguageOptions, read: Callable[[str], Numbers]) -> None:
        super().__init__()
        self.options = options
        self._read = read
        self._epoch, self._position = 0, 0
        self._answers: StoredArrays | None = None
        self._written: WrittenText | None = None

    def start(self, epoch: int, batches: int) -> None:
        """Let training go on in an epoch, after that many windows."""
        self._epoch, self._position = epoch, batches

    def train_dataloader(self) -> Windows:
        """Windows of all streams, in the order of the text."""
        windows = self._windows_to_train()
        windows.skip(self._position)
        windows.passes, windows.written = self._epoch, self._written
        self._position = 0
        return windows

    def answer(self, teacher: Callable[[], nn.Module], folder: Path, device: torch.device) -> str:
        """See `Data.answer`: every pass reads the same windows in the same order, and so does this one."""
        answers = self._answers_in(folder)
        if not answers.done:
            answers.write(answers_to(self._windows_to_train(), teacher(), device))
        written, options = self._written_in(folder), self.options
        if options.written and not written.done:
            width, words = share_of(options), -(-options.written // processes())
            start = torch.cat([window.words for window in self._windows_to_train()])
            written.write(text_of(teacher(), start, words, width, options.unroll, device))
        return ""

    def learn(self, teacher: Callable[[], nn.Module], folder: Path, device: torch.device) -> None:
        """See `Data.learn`."""
        self._answers = self._answers_in(folder)
        if self.options.written:
            self._written = WrittenText(self._written_in(folder), share_of(self.options), self.options.unroll)

    def val_dataloader(self) -> Windows:
        """The text that is measured after every epoch."""
        return self._windows_to_measure(self.options.valid)

    def test_dataloader(self) -> Windows:
        """The text that is measured at the end."""
        return self._windows_to_measure(self.options.test)

    def training_batches(self) -> int:
        """Windows of a pass."""
        return self._windows_to_train().count

    def calibration(self, model: nn.Module, device: torch.device) -> Iterator[tuple[Any, ...]]:
        """Windows of the training text, each with the state that the model carried there."""
        # A copy, because whoever takes the windows watches the model itself.
        carrier, state = deepcopy(model).eval(), None
        for index, window in enumerate(Windows(*self._streams_to_train(), self.options.unroll)):
            if index == self.options.calibration_batches:
                return
            words = window.words.to(device)
            if state is None:
                with torch.no_grad():
                    state = carrier(words[:1])[1]
                state = tuple(tuple(torch.zeros_like(part) for part in layer) for layer in state)
            yield words, state
            with torch.no_grad():
                state = carrier(words, state)[1]

    def example(self) -> tuple[Tensor]:
        """The beginnings of two streams."""
        return (self._streams_to_train()[0][:8, :2],)

    def sample(self) -> tuple[Tensor]:
        """The beginning of the measured text: one window of one stream."""
        return (torch.from_numpy(self._read(self.options.test)[: self.options.unroll, None]),)

    def _streams_to_train(self) -> tuple[Tensor, Tensor]:
        """Words and those that follow, T × B, of all processes."""
        train = self.options.train
        words, following = streams_to_train(self._read(train), self.options.batch_size, train)
        return torch.from_numpy(words), torch.from_numpy(following)

    def _windows_to_train(self) -> Windows:
        """Windows of this process's streams."""
        words, following = self._streams_to_train()
        width = share_of(self.options)
        mine = slice(rank() * width, (rank() + 1) * width)
        windows = Windows(words[:, mine], following[:, mine], self.options.unroll)
        windows.answers = self._answers
        return windows

    def _answers_in(self, folder: Path) -> StoredArrays:
        """Answers to this process's streams."""
        return StoredArrays(folder / str(rank()))

    def _written_in(self, folder: Path) -> StoredArrays:
        """What the dense model wrote for this process."""
        return StoredArrays(folder / f"{rank()}-written")

    def _windows_to_measure(self, path: str) -> Windows:
        streams = streams_to_measure(self._read(path), self.options.batch_size)
        # Streams are dealt out to the processes.
        words, following = (torch.from_numpy(part)[:, rank() :: processes()] for part in streams)
        return Windows(words, following, self.options.unroll)
