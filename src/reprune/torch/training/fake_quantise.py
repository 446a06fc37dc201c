"""Quantisation-aware fine-tuning: a model learns with the rounding that its 8-bit file will have."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from reprune.torch.ragged.base import RaggedBase

Model = TypeVar("Model", bound=nn.Module)
_LARGEST = 127
_KINDS = (nn.RNNBase, nn.RNNCellBase, nn.Linear, RaggedBase)


def fake_quantise(model: Model) -> Model:
    """Round the weights of recurrent and linear layers to 8 bits in every forward pass, in place.

    Each row of a matrix (one gate of one unit, or one output) has a scale of its own, on which its largest magnitude is
    127. `export(…, int8=…)` to `.onnx` uses the same scales, so that it writes the very numbers that were trained.
    Gradients pass through the rounding as if it were not there (the straight-through estimator of PyTorch's own fake
    quantisers); the optimiser keeps training the unrounded weights. Biases and embeddings are left alone.

    Args:
        model: A model, usually pruned and trained, to be trained on for a few hundred steps.

    Returns:
        The model.

    Example:
        >>> reprune.torch.fake_quantise(small)                                  # doctest: +SKIP
        >>> reprune.distill(small, model, batches, steps=200)                   # doctest: +SKIP
        >>> reprune.export(small, example, "small.onnx", int8=True)             # doctest: +SKIP
    """
    for module in model.modules():
        if isinstance(module, _KINDS):
            for name, weight in list(module.named_parameters(recurse=False)):
                if weight.ndim == 2:
                    parametrize.register_parametrization(module, name, _Rounded())
    return model


class _Rounded(nn.Module):
    """A matrix whose rows are rounded to whole numbers of steps."""

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded matrix."""
        steps = weight.detach().abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / _LARGEST
        zeros = torch.zeros_like(steps, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, steps, zeros, 0, -_LARGEST, _LARGEST)
