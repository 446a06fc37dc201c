"""Text as a language model reads it: words, their numbers, and streams of them. Imports no framework."""

from __future__ import annotations

import gzip
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reprune.core.errors import RecipeError
from reprune.recipes.language.options import LanguageOptions

Numbers = NDArray[np.int64]

VOCABULARY = "vocabulary.txt"
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

    def encode(self, path: str | Path) -> Numbers:
        """The numbers of a text's words, int64.

        Raises:
            RecipeError: When the text cannot be read, or is too short to predict anything.
        """
        unknown = self._numbers[UNKNOWN]
        numbers = array("i", (self._numbers.get(word, unknown) for word in read_words(path)))
        if len(numbers) < 2:
            raise RecipeError(f"The text {path} has {len(numbers)} words: a language model needs at least two.")
        return np.frombuffer(numbers, dtype=np.intc).astype(np.int64)


class Reader:
    """The texts of a run as numbers.

    Args:
        options: Which texts.
        vocabulary: The words that the model knows; those of the training text if not given.
    """

    options: LanguageOptions

    def __init__(self, options: LanguageOptions, vocabulary: Vocabulary | None = None) -> None:
        self.options = options
        self._given = vocabulary
        self._texts: dict[str, Numbers] = {}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words that the model knows."""
        return self._given or Vocabulary.of(self.options.train, self.options.vocabulary)

    def read(self, path: str) -> Numbers:
        """The numbers of the words of a text, which is read once.

        Raises:
            RecipeError: When it cannot be read, or is too short.
        """
        if path not in self._texts:
            self._texts[path] = self.vocabulary.encode(path)
        return self._texts[path]

    def files(self) -> Mapping[str, str]:
        """The vocabulary, one word a line, in the order of their numbers."""
        return {VOCABULARY: "".join(f"{word}\n" for word in self.vocabulary.words)}


def streams_to_train(numbers: Numbers, streams: int, path: str) -> tuple[Numbers, Numbers]:
    """A text cut into streams of equal length: words, and those that follow, T × B.

    Args:
        numbers: The text, of which the fewer than `streams` last words that do not go round are left out.
        streams: How many.
        path: Where it is from, for messages.

    Raises:
        RecipeError: When it is too short.
    """
    length = (len(numbers) - 1) // streams
    if not length:
        raise RecipeError(f"{path} has {len(numbers)} words, too few for {streams} streams: lower --batch-size.")
    words, following = (numbers[shift : shift + streams * length].reshape(streams, length).T for shift in (0, 1))
    return words, following


def streams_to_measure(numbers: Numbers, streams: int) -> tuple[Numbers, Numbers]:
    """A text cut into streams that predict every word but the first once: words, and those that follow, T × B.

    The last stream may be shorter: past its end, `IGNORED` follows.
    """
    length = -(-(len(numbers) - 1) // streams)
    padding = (0, streams * length - (len(numbers) - 1))
    words, following = np.pad(numbers[:-1], padding), np.pad(numbers[1:], padding, constant_values=IGNORED)
    return words.reshape(streams, length).T, following.reshape(streams, length).T
