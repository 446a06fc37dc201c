"""A dense model's answers to whole videos, found again by their frames, in whatever order and batch these come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprune.core.progress import told
from reprune.core.saving.arrays import StoredArrays

Array = NDArray[Any]
Ask = Callable[[Array, Array], Array]
"""From frames (B × T × F) and lengths (B) to a model's logits (B × classes)."""

VIDEOS, LOGITS = "videos", "logits"
"""Names of the arrays as they are stored: uint64, what stands for a video's frames, and float16 (videos × classes)."""


class VideoAnswers:
    """Answers that were stored, and a model to ask about what is not among them.

    Args:
        parts: What each process stored; those that are not there are left out.
        ask: The model.
    """

    def __init__(self, parts: Sequence[StoredArrays], ask: Ask) -> None:
        self._parts, self._ask = [part for part in parts if part.done and len(part[VIDEOS])], ask
        self._videos = [part[VIDEOS] for part in self._parts]
        self._orders = [np.argsort(videos) for videos in self._videos]

    def __call__(self, frames: Array, lengths: Array) -> Array:
        """Logits of a batch (float32, B × classes)."""
        wanted = digests(frames, lengths)
        rows: dict[int, Array] = {}
        for part, videos, order in zip(self._parts, self._videos, self._orders, strict=True):
            places = np.searchsorted(videos, wanted, sorter=order).clip(max=len(videos) - 1)
            for row, place in enumerate(order[places]):
                if videos[place] == wanted[row]:
                    rows[row] = part[LOGITS][place]
        others = [row for row in range(len(wanted)) if row not in rows]
        if others:
            rows |= dict(zip(others, self._ask(frames[others], lengths[others]), strict=True))
        return np.stack([rows[row] for row in range(len(wanted))]).astype(np.float32)


def digests(frames: Array, lengths: Array) -> NDArray[np.uint64]:
    """Numbers that stand for the frames of videos (B): equal for equal ones, and as good as never otherwise."""
    found = [
        blake2b(np.ascontiguousarray(video[:n]).data, digest_size=8).digest()
        for video, n in zip(frames, lengths, strict=True)
    ]
    return np.frombuffer(b"".join(found), np.uint64)


def store(stored: StoredArrays, batches: Iterable[tuple[Array, Array]], ask: Ask, longest: int) -> tuple[int, int]:
    """Ask a model about videos, and store what it answers.

    Args:
        stored: Where.
        batches: Frames and lengths, of every video its first frames.
        ask: The model.
        longest: Frames of a video that are used at most.

    Returns:
        How many videos there are, and how many of them fill that.
    """
    videos = full = 0

    def answered() -> Iterator[dict[str, Array]]:
        nonlocal videos, full
        for frames, lengths in told("asking the dense model", batches):
            videos, full = videos + len(lengths), full + int((lengths >= longest).sum())
            yield {VIDEOS: digests(frames, lengths), LOGITS: ask(frames, lengths).astype(np.float16)}

    stored.write(answered())
    return videos, full


def said_of(videos: int, full: int, longest: int) -> str:
    """What is to be said of videos some of which may be longer than what is used of them."""
    if not full:
        return ""
    return (
        f"{full} of {videos} videos have {longest} frames or more (--max-frames): of those that have more, every pass "
        "sees other frames, about which the dense model is asked anew."
    )
