"""Weights that PyTorch's own tools compute before every call, such as weight and spectral normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from reprune.torch.tracing.running.copies import duplicate

Model = TypeVar("Model", bound=nn.Module)


class Computed(NamedTuple):
    """A weight that is computed: the path of its module, its name there, and by what."""

    path: str
    name: str
    by: str

    def __str__(self) -> str:
        return f"{self.path}.{self.name}".lstrip(".") + f" ({self.by})"


def computed(model: nn.Module) -> list[Computed]:
    """The computed weights that `plain` makes plain: with fewer rows or columns, those that stay would be others.

    What works element by element, such as weight drop, does so on a smaller weight, too, and is left alone.
    """
    modules = list(model.named_modules())
    found = [Computed(path, name, tool) for path, module in modules for name, tool, _ in hooked(module)]
    for path, module in modules:
        steps = _parametrizations(module)
        # All or none: a module is of another class as long as any of its weights is parametrised.
        if not all(map(_unitwise, steps.values())):
            found += [Computed(path, name, _names(each)) for name, each in steps.items()]
    return found


def plain(model: Model) -> Model:
    """A copy of a model in which computed weights are plain, with the values that they have in evaluation mode.

    Without such weights it is the model itself.
    """
    paths = {found.path for found in computed(model)}
    if not paths:
        return model
    twin = duplicate(model)
    for path in paths:
        settle(twin.get_submodule(path))
    return twin


def settle(module: nn.Module) -> None:
    """Make all computed weights of a module, but for those of its parts, plain ones, in place."""
    training = module.training
    module.eval()  # A power iteration goes on in training mode.
    with torch.no_grad():
        for name, tool, kind in list(hooked(module)):
            parts = [module._parameters.get(f"{name}_{end}") for end in ("g", "v", "orig")]
            getattr(import_module(kind.__module__), f"remove_{tool}")(module, name)
            module.get_parameter(name).requires_grad_(any(part is not None and part.requires_grad for part in parts))
        steps = _parametrizations(module)
        values = {
            name: nn.Parameter(getattr(module, name).clone(), any(part.requires_grad for part in each.parameters()))
            for name, each in steps.items()
        }
    if steps:
        # Not remove_parametrizations: it takes the attributes from a class that the model that was copied has, too.
        module.__class__ = type(module).__bases__[0]
        del module._modules["parametrizations"]
    for name, value in values.items():
        setattr(module, name, value)
    module.train(training)


def hooked(module: nn.Module) -> Iterator[tuple[str, str, type]]:
    """Weights that the older tools compute in hooks: name, tool, and the hook's type, which is not exported."""
    for hook in module._forward_pre_hooks.values():
        tool = type(hook).__module__.removeprefix("torch.nn.utils.")
        if tool in ("weight_norm", "spectral_norm"):
            yield cast(Any, hook).name, tool, type(hook)


def _parametrizations(module: nn.Module) -> dict[str, parametrize.ParametrizationList]:
    return dict(cast(Any, module.parametrizations).items()) if parametrize.is_parametrized(module) else {}


def _names(steps: parametrize.ParametrizationList) -> str:
    return ", ".join(type(step).__name__.strip("_") for step in steps)


def _unitwise(steps: parametrize.ParametrizationList) -> bool:
    """Whether a parametrisation makes of some rows and columns what it makes of them among others, and keeps zeros."""
    if not steps.is_tensor or len([*steps.parameters(), *steps.buffers()]) > 1:
        return False
    twin = duplicate(steps).eval()
    whole = twin.original.detach()
    some = (slice(None, None, 2),) * whole.ndim

    def made(weight: torch.Tensor) -> torch.Tensor:
        for step in twin:
            weight = step(weight)
        return weight

    with torch.no_grad():
        try:
            return torch.equal(made(whole[some]), made(whole)[some]) and not made(torch.zeros_like(whole)).any()
        except Exception:  # Whatever a step raises that wants all of its weight.
            return False
