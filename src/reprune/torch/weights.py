"""A pruned model's weights on disk."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from reprune.core.plan import Plan
from reprune.core.saving import check_tensors, check_values, unreadable

PRECISIONS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


def save_weights(model: nn.Module, plan: Plan | None, path: Path) -> None:
    """Write a model's weights and buffers as safetensors."""
    safetensors.torch.save_model(model, str(path))


def load_weights(model: nn.Module, plan: Plan | None, path: Path) -> None:
    """Fill a model from a safetensors file; every tensor is checked before the first one is changed.

    Raises:
        PlanError: When the file is damaged or belongs to another model.
    """
    try:
        found = safetensors.torch.load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error) from error
    state = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    # Tied tensors are stored once: another name of the same tensor is enough.
    held = {id(state[name]) for name in found if name in state}
    missing = [name for name, tensor in state.items() if id(tensor) not in held]
    shapes, expected = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (found, state))
    check_tensors(path, shapes, expected, missing)
    for name, tensor in found.items():
        mine = state[name]
        fits = tensor.dtype in (PRECISIONS if mine.is_floating_point() else {mine.dtype})
        # A buffer may hold anything; a weight that is no number makes the whole model useless.
        finite = not fits or not isinstance(mine, nn.Parameter) or not bool(tensor.isnan().any())
        check_values(path, name, tensor.dtype, mine.dtype, fits=fits, finite=finite)
    for name, tensor in found.items():
        # In place, so that tied modules and the lists that recurrent modules keep go on sharing it.
        state[name].data = tensor.to(state[name].device)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
