"""Text that a dense model writes itself, for a smaller one to learn from.

The dense model knows its training text partly by heart, and a smaller one that reads it many times learns it by heart,
too. Text that the dense model writes never ends, and only the dense model's answers to it are learned. Y. Kim and
A. M. Rush, "Sequence-Level Knowledge Distillation" (EMNLP 2016), teach by the most likely text; here words are drawn
with the probabilities that the dense model gives them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reprune.core.answers.likely import CLASSES, LOGS, packed
from reprune.core.progress import told
from reprune.core.saving.arrays import StoredArrays
from reprune.torch.training.likely import Likely, likely, unpacked

LENGTH = 2000
"""About how many words a stream has at most."""
STREAMS = 100
"""So many are written side by side before they are that long: one after the other takes the time."""
WORDS = "words"
"""Name of the array of words as `text_of` makes it."""


class Written(NamedTuple):
    """A piece of some streams: words T × B, the dense model's answers to them, and whether the streams begin here."""

    words: Tensor
    answers: Likely
    first: bool


class WrittenText:
    """Windows over stored text: some streams are read to their end, then the next ones, and again from the first.

    Args:
        stored: What `text_of` made.
        width: Streams that are read side by side.
        unroll: Length of a window.
    """

    def __init__(self, stored: StoredArrays, width: int, unroll: int) -> None:
        self._stored, self._width, self._unroll = stored, width, unroll

    def window(self, number: int, length: int) -> Written:
        """One of the windows, counted from 0 on, or its first `length` words."""
        steps, streams = self._stored[WORDS].shape
        group, piece = divmod(number, steps // self._unroll)
        start, first = piece * self._unroll, group % (streams // self._width) * self._width
        words, classes, logs = (
            self._stored[name][start : start + length, first : first + self._width] for name in (WORDS, CLASSES, LOGS)
        )
        return Written(torch.from_numpy(words.astype(np.int64)), unpacked(classes, logs), piece == 0)


@torch.no_grad()
def text_of(
    dense: nn.Module, start: Tensor, words: int, width: int, unroll: int, device: torch.device
) -> Iterator[dict[str, NDArray[Any]]]:
    """Text that a model writes, with its answers, to be stored: some steps of all streams at a time (T × N …).

    Args:
        dense: Maps (words, state) to (logits, state).
        start: Text to begin with (T × B): every stream goes on from as many words of it as a window has.
        words: How many are written at least.
        width: Streams are a multiple of it.
        unroll: Their length is a multiple of it.
        device: Where the model computes.
    """
    dense.to(device).eval()
    rng, drawn = np.random.default_rng(0), torch.Generator(device).manual_seed(0)
    pieces = max(min(LENGTH, words // STREAMS) // unroll, 1)
    streams = -(-words // (pieces * unroll * width)) * width
    flat = start.t().flatten().to(device)
    places = torch.randint(max(len(flat) - unroll, 1), (streams,), generator=drawn, device=device)
    logits, state = dense(flat[places + torch.arange(min(unroll, len(flat)), device=device)[:, None]])
    for _ in told("the dense model writes", range(pieces), pieces):
        written, answers = [], []
        for _ in range(unroll):
            chances = logits[-1].float().softmax(-1)
            # The largest of probabilities over exponential draws is a draw from them.
            written.append((chances / torch.empty_like(chances).exponential_(generator=drawn)).argmax(-1))
            logits, state = dense(written[-1][None], state)
            answers.append(likely(logits[0], rng))
        classes, logs = (torch.stack(part).cpu().numpy() for part in zip(*answers, strict=True))
        words_of = torch.stack(written).cpu().numpy().astype(np.int32)
        yield {WORDS: words_of, **packed(classes, logs, logits.shape[-1])}
