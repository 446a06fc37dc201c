"""Models inside wrappers: seen through where that is right, refused with the way out otherwise."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel

from reprune.core.errors import UnsupportedModelError
from reprune.torch.tracing.running.computed import hooked, plain


def checked(model: nn.Module) -> nn.Module:
    """The model without wrappers, and with plain weights where they are computed otherwise than unit by unit."""
    return plain(unwrap(model, computed=True))


def unwrap(model: nn.Module, *, computed: bool = False) -> nn.Module:
    """The plain model inside `DataParallel`, `DistributedDataParallel`, `torch.compile`, averages and Fabric's wrapper.

    Args:
        model: The model.
        computed: Whether weights that PyTorch's tools compute in every pass will do as well.

    Raises:
        UnsupportedModelError: For what has to be undone first, such as TorchScript, parametrised weights, or such a
            wrapper around a part of the model; the message says how.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"Expected a torch.nn.Module, got {type(model).__name__}.")
    while (inner := _inside(model)) is not None:
        model = inner
    for name, module in model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if _inside(module) is not None:
            raise UnsupportedModelError(
                f"{where} wraps a part of the model. Prune the model with the plain module in its place "
                f"({type(module).__name__}'s {_inner_name(module)}), then wrap the part of the pruned one."
            )
        if hasattr(module, "_fsdp_wrapped_module") or hasattr(module, "_get_fsdp_state"):
            raise UnsupportedModelError(
                f"{where} is sharded by FSDP, so no process holds its weights whole. Gather them into the plain model "
                "(torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True), prune that, "
                "then shard the pruned one."
            )
        if (masked := _masked(module)) is not None:
            raise UnsupportedModelError(
                f"{where} has a mask of torch.nn.utils.prune on {masked!r}. Make it permanent first: "
                f"torch.nn.utils.prune.remove(module, {masked!r})."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{where} is TorchScript, whose code cannot be changed. Prune the Python model it was made from, then "
                "script the pruned one."
            )
        if "quantized" in type(module).__module__:
            raise UnsupportedModelError(
                f"{where} is quantised. Prune the float model first, then quantise the pruned one."
            )
        if not computed and (hook := next(hooked(module), None)):
            raise UnsupportedModelError(
                f"{where} has a {hook[0]} that {hook[1]} computes in every call. Make it plain first: "
                f"torch.nn.utils.remove_{hook[1]}(module, {hook[0]!r})."
            )
        if not computed and parametrize.is_parametrized(module):
            raise UnsupportedModelError(
                f"{where} is parametrised. Make its weights plain first: "
                "torch.nn.utils.parametrize.remove_parametrizations(module, name); parametrise the pruned model again."
            )
    return model


def _inside(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps; None for a module that is none."""
    name = _inner_name(module)
    return None if name is None else cast(nn.Module, getattr(module, name))


def _inner_name(module: nn.Module) -> str | None:
    """The attribute under which a wrapper has what it wraps."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
        return "module"
    # torch.compile, and Lightning's Fabric: neither has a public type.
    return next((name for name in ("_orig_mod", "_original_module") if name in module._modules), None)


def _masked(module: nn.Module) -> str | None:
    """The name of a weight that is masked before every call."""
    hooks = module._forward_pre_hooks.values()
    return next((hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)), None)
