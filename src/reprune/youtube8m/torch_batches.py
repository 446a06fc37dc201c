"""Batches of YouTube-8M records as PyTorch tensors, and what turns their bytes into features on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reprune.youtube8m.batches import (
    MAX_FRAMES,
    Contents,
    Padding,
    batch_shape,
    contents,
    fill_frames,
    one_per_class,
)
from reprune.youtube8m.records import Record


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
        # `pack_padded_sequence` wants lengths on the CPU: they may be there.
        valid = torch.arange(frames.shape[-2], device=frames.device) < lengths.to(frames.device)[..., None]
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
    frames = np.empty(batch_shape(records, padding, max_frames), np.uint8)
    fill_frames(frames, records, padding)
    return assemble(torch.from_numpy(frames), contents(records, padding, max_frames), classes)


def assemble(frames: Tensor, rest: Contents, classes: int) -> Batch:
    """Put a batch together."""
    labels = torch.from_numpy(one_per_class(rest.labels, classes))
    return Batch(frames, torch.tensor(rest.lengths), labels, rest.ids)
