"""Text as a language model reads it: words, their numbers, and windows over streams."""

from __future__ import annotations

import gzip
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from reprune.core.errors import RecipeError
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.run.processes import share_of
from reprune.recipes.run.torch_recipe import Data
from reprune.torch.training.distributed import processes, rank

UNKNOWN = "<unk>"
END = "<eos>"
IGNORED = -100  # as cross_entropy's ignore_index


def read_words(path: str | Path) -> Iterator[str]:
    """The words of a text, with `<eos>` at the end of every line.

    Args:
        path: Plain or gzipped (told apart by content) UTF-8.

    Raises:
        RecipeError: When the file is missing, damaged or not text.
    """
    try:
        with Path(path).open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="utf-8-sig") if zipped else Path(path).open(encoding="utf-8-sig") as lines:
            for line in lines:
                yield from line.split()
                yield END
    except (OSError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RecipeError(f"The text {path} cannot be read: {reason}. Give a plain or gzipped text file.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): convert it, such as with iconv -t utf-8."
        ) from None


class Vocabulary:
    """The words that a model knows, and their numbers.

    Args:
        words: All of them, `<unk>` and `<eos>` included.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._numbers = {word: number for number, word in enumerate(self.words)}

    @staticmethod
    def of(path: str | Path, size: int) -> Vocabulary:
        """The most frequent words of a text, first met first among equals; all others are `<unk>`."""
        counts = Counter(word for word in read_words(path) if word not in (UNKNOWN, END))
        return Vocabulary([UNKNOWN, END, *(word for word, _ in counts.most_common(size - 2))])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, path: str | Path) -> Tensor:
        """The numbers of a text's words, int64.

        Raises:
            RecipeError: When the text cannot be read, or is too short to predict anything.
        """
        unknown = self._numbers[UNKNOWN]
        numbers = array("i", (self._numbers.get(word, unknown) for word in read_words(path)))
        if len(numbers) < 2:
            raise RecipeError(f"The text {path} has {len(numbers)} words: a language model needs at least two.")
        return torch.from_numpy(np.frombuffer(numbers, dtype=np.intc).astype(np.int64))


class Window(NamedTuple):
    """A piece of some streams: words T × B, and the words that follow each of them (`IGNORED` past a stream's end).

    `first` says that the streams begin here: the state before it is zero.
    """

    words: Tensor
    following: Tensor
    first: bool


class Windows:
    """Passes over streams, window by window.

    Args:
        words: T × B.
        following: T × B.
        unroll: Length of a window; the last of a pass may be shorter.
    """

    def __init__(self, words: Tensor, following: Tensor, unroll: int) -> None:
        self._words, self._following, self._unroll = words, following, unroll
        self._skipped = 0

    def skip(self, windows: int) -> None:
        """Let the next pass leave out that many windows."""
        self._skipped = windows

    def __iter__(self) -> Iterator[Window]:
        first, self._skipped = self._skipped, 0
        for start in range(first * self._unroll, len(self._words), self._unroll):
            piece = slice(start, start + self._unroll)
            yield Window(self._words[piece].contiguous(), self._following[piece].contiguous(), start == 0)


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

    def __init__(self, options: LanguageOptions, read: Callable[[str], Tensor]) -> None:
        super().__init__()
        self.options = options
        self._read = read
        self._position = 0

    def start(self, epoch: int, batches: int) -> None:
        """Let training go on after that many windows."""
        self._position = batches

    def train_dataloader(self) -> Windows:
        """Windows of all streams, in the order of the text."""
        words, following = self._streams_to_train()
        width = share_of(self.options)
        mine = slice(rank() * width, (rank() + 1) * width)
        windows = Windows(words[:, mine], following[:, mine], self.options.unroll)
        windows.skip(self._position)
        self._position = 0
        return windows

    def val_dataloader(self) -> Windows:
        """The text that is measured after every epoch."""
        return self._windows_to_measure(self.options.valid)

    def test_dataloader(self) -> Windows:
        """The text that is measured at the end."""
        return self._windows_to_measure(self.options.test)

    def training_batches(self) -> int:
        """Windows of a pass."""
        return -(-len(self._streams_to_train()[0]) // self.options.unroll)

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
        return (self._read(self.options.test)[: self.options.unroll, None],)

    def _streams_to_train(self) -> tuple[Tensor, Tensor]:
        """Words and those that follow, T × B, of all processes."""
        numbers, streams = self._read(self.options.train), self.options.batch_size
        length = (len(numbers) - 1) // streams
        if not length:
            raise RecipeError(
                f"{self.options.train} has {len(numbers)} words, too few for {streams} streams: lower --batch-size."
            )
        words, following = (numbers[shift : shift + streams * length].view(streams, length).T for shift in (0, 1))
        return words, following

    def _windows_to_measure(self, path: str) -> Windows:
        numbers, streams = self._read(path), self.options.batch_size
        length = -(-(len(numbers) - 1) // streams)
        padding = streams * length - (len(numbers) - 1)
        words = torch.nn.functional.pad(numbers[:-1], (0, padding))
        following = torch.nn.functional.pad(numbers[1:], (0, padding), value=IGNORED)
        # Streams are dealt out to the processes.
        words, following = (part.view(streams, length).T[:, rank() :: processes()] for part in (words, following))
        return Windows(words, following, self.options.unroll)
