"""Models inside wrappers: seen through where that is right, refused with the way out otherwise."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from reprune.core.errors import UnsupportedModelError


def unwrap(model: nn.Module) -> nn.Module:
    """The plain model inside `DataParallel`, `DistributedDataParallel` and `torch.compile`.

    Raises:
        UnsupportedModelError: For TorchScript, quantised and parametrised models, saying what to do first.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"Expected a torch.nn.Module, got {type(model).__name__}.")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            break
    for name, module in model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{where} is TorchScript, whose code cannot be changed. Prune the Python model it was made from, then "
                "script the pruned one."
            )
        if "quantized" in type(module).__module__:
            raise UnsupportedModelError(
                f"{where} is quantised. Prune the float model first, then quantise the pruned one."
            )
        if parametrize.is_parametrized(module):
            raise UnsupportedModelError(
                f"{where} is parametrised. Make its weights plain first: "
                "torch.nn.utils.parametrize.remove_parametrizations(module, name); parametrise the pruned model again."
            )
    return model
