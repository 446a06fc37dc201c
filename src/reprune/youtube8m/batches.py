"""Batches of YouTube-8M records as arrays, and what a batch holds beside its frames. Imports no framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reprune.youtube8m.records import Record

MAX_FRAMES = 300
"""The paper's longest window, in frames (seconds, in YouTube-8M)."""

Padding = Literal["mask", "last"]


class Contents(NamedTuple):
    """What a batch holds beside its frames, in the small form in which it travels between processes."""

    ids: list[str]
    labels: list[NDArray[np.int64]]
    lengths: list[int]


def contents(records: Sequence[Record], padding: Padding, max_frames: int) -> Contents:
    """Return what a batch of these records holds beside its frames."""
    lengths = [max_frames if padding == "last" else len(record.frames) for record in records]
    return Contents([record.id for record in records], [record.labels for record in records], lengths)


def batch_shape(records: Sequence[Record], padding: Padding, max_frames: int) -> tuple[int, int, int]:
    """Return the shape of the frames of a batch of these records: B × T × F."""
    longest = max(len(record.frames) for record in records)
    return len(records), max_frames if padding == "last" else longest, records[0].frames.shape[1]


def fill_frames(frames: NDArray[np.uint8], records: Sequence[Record], padding: Padding) -> None:
    """Write the frames of records and their padding into an array of shape `batch_shape(...)`."""
    for row, record in zip(frames, records, strict=True):
        row[: len(record.frames)] = record.frames
        row[len(record.frames) :] = record.frames[-1] if padding == "last" else 0


def one_per_class(labels: Sequence[NDArray[np.int64]], classes: int) -> NDArray[np.bool_]:
    """Labels of B records as a table (B × classes)."""
    rows = np.zeros((len(labels), classes), np.bool_)
    for row, positive in zip(rows, labels, strict=True):
        row[positive] = True
    return rows
