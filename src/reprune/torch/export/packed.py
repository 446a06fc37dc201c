"""For export: packed sequences kept padded, (T, B, F), beside their lengths, as ONNX's operators read them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PadInsteadOfPack(TorchFunctionMode):
    """Within this context, the data of a `PackedSequence` stay padded; its batch sizes are true ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "_pack_padded_sequence":
            return _pack(*args, **(kwargs or {}))
        if name == "_pad_packed_sequence":
            return _pad(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _pack(data: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    data = data.transpose(0, 1) if batch_first else data
    if data.shape[1] != lengths.shape[0]:  # Comparing tells the exporter that the two sizes are one.
        raise RuntimeError(f"{lengths.shape[0]} lengths do not fit a batch of {data.shape[1]}")
    steps = torch.arange(data.shape[0])
    return data, (lengths[None, :] > steps[:, None]).sum(1)


def _pad(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    # As many steps as went in, which is total_length if the caller asks for the input's.
    lengths = lengths_of(data, batch_sizes)
    valid = torch.arange(data.shape[0])[:, None] < lengths[None, :]
    data = torch.where(valid[..., None], data, padding_value)
    return (data.transpose(0, 1) if batch_first else data), lengths


def lengths_of(data: Tensor, batch_sizes: Tensor) -> Tensor:
    """Steps of every sequence (B), in the packed order, from padded data (T, B, F)."""
    return (batch_sizes[None, :] > torch.arange(data.shape[1])[:, None]).sum(1)
