"""A pruned model's weights on disk."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from reprune.core.layers import Structure
from reprune.core.plan import Plan
from reprune.core.saving.digest import digest_of_arrays
from reprune.core.saving.saving import check_savable, check_tensors, check_values, unreadable
from reprune.torch.surgery.apply import check, cut, put
from reprune.torch.tracing.running.copies import duplicate

PRECISIONS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


def digest(model: nn.Module, structure: Structure) -> str:
    """The digest of a model's weights: of its parameters, and of the buffers that its state dict keeps.

    A running mean is among these: the model answers by it, and corrections were fitted to what it answered. Buffers of
    whole numbers count steps and the like, and what a model writes while it answers (`Structure.written`) is its state:
    they are no part of it.
    """
    return digest_of_arrays(_array(tensor) for tensor in _weights(model, structure.written))


def _weights(model: nn.Module, written: Collection[str]) -> Iterator[Tensor]:
    yield from model.parameters()
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(path, recurse=False):
            persistent = name.rpartition(".")[2] not in module._non_persistent_buffers_set
            if persistent and name not in written and (buffer.is_floating_point() or buffer.is_complex()):
                yield buffer


def _array(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
        tensor = tensor.float()  # NumPy does not know all of the short types.
    found: NDArray[Any] = (
        (tensor.to_dense() if tensor.is_sparse or tensor.is_sparse_csr else tensor).resolve_conj().numpy()
    )
    return found


def save_weights(model: nn.Module, plan: Plan | None, path: Path) -> None:
    """Write a model's weights and buffers as safetensors.

    Raises:
        PlanError: When a weight is one that `load_weights` would refuse.
    """
    shapes = {} if plan is None else plan.small_shapes()
    for name, weight in model.named_parameters():
        fits = weight.dtype in PRECISIONS or not weight.is_floating_point()
        check_savable(name, weight.dtype, tuple(weight.shape), shapes.get(name), fits=fits, finite=_finite(weight))
    safetensors.torch.save_model(model, str(path))


def _finite(weight: Tensor) -> bool:
    return weight.dtype.itemsize < 2 or not bool(weight.isnan().any())


def load_pruned(dense: nn.Module, plan: Plan, path: Path, *, sealed: bool) -> nn.Module:
    """The smaller model that a plan makes of a dense one, with weights from a safetensors file.

    Raises:
        PlanError: When the file is damaged or belongs to another model.
    """
    check(dense, plan)
    # Sizes without values: those of the dense model would be copied and cut for nothing.
    hollow = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in dense.parameters()}
    small = cut(duplicate(dense, hollow), plan.cut_only() if plan.corrects else plan)
    devices = {name: parameter.device for name, parameter in dense.named_parameters(remove_duplicate=False)}
    load_weights(small, path, devices, sealed=sealed)
    return small


def load_weights(
    model: nn.Module, path: Path, devices: Mapping[str, torch.device] | None = None, *, sealed: bool = False
) -> None:
    """Fill a model from a safetensors file; every tensor is checked before the first one is changed.

    Args:
        model: The model.
        path: The file.
        devices: Where to put its weights, if not where they are.
        sealed: Whether the file is known to hold what was saved.

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
        finite = sealed or not fits or not isinstance(mine, nn.Parameter) or _finite(tensor)
        check_values(path, name, tensor.dtype, mine.dtype, fits=fits, finite=finite)
    put(
        model,
        {id(state[name]): _like(state[name], tensor, (devices or {}).get(name)) for name, tensor in found.items()},
    )
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()


def _like(mine: Tensor, found: Tensor, device: torch.device | None) -> Tensor:
    found = found.to(device or mine.device)
    return nn.Parameter(found, mine.requires_grad) if isinstance(mine, nn.Parameter) else found
