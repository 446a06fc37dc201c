"""Copies of models, those included that hold tensors of an earlier step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from reprune.core.errors import UnsupportedModelError
from reprune.torch.tracing.recording import tensors_in


def duplicate(model: nn.Module, instead: Mapping[int, torch.Tensor] | None = None) -> nn.Module:
    """A deep copy of a model, in which tensors computed with a graph are plain values.

    `copy.deepcopy` refuses a model that keeps its hidden state, or a weight with dropout applied, from a training step.

    Args:
        model: The model.
        instead: What the copy has in the places of tensors that are not copied, by their id.

    Raises:
        UnsupportedModelError: When the model holds something that cannot be copied, such as a lock or an open file.
    """
    memo: dict[int, Any] = dict(instead or {})
    for module in model.modules():
        for tensor in _held(list(vars(module).values()), depth=4):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    try:
        twin = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, copy.Error) as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be copied ({error}), and reprune never changes the model it is given. "
            "Remove what cannot be copied from its attributes, or give it a __deepcopy__."
        ) from error
    for module in twin.modules():
        if isinstance(module, nn.RNNBase):
            # Copied weights lie in memory one by one; cuDNN wants those of a module in one piece.
            module.flatten_parameters()
    return twin


def fresh(batch: Any) -> Any:
    """A copy of a batch into which a model may write; tensors computed with a graph, or in inference mode, are plain.

    What cannot be copied (an open file beside the tensors) is shared.
    """
    memo: dict[int, Any] = {}
    for tensor in tensors_in(batch):
        if not tensor.is_leaf or tensor.is_inference():
            memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(batch, memo)
    except (TypeError, RuntimeError, copy.Error):
        return batch


def _held(value: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            yield from _held(item, depth - 1)
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from _held(item, depth - 1)
