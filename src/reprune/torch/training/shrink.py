"""A model that is being trained becomes smaller in place: the same objects, with fewer units, and so its optimiser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from reprune.core.errors import RecipeError
from reprune.core.layers import Slot
from reprune.core.plan import Plan
from reprune.torch.surgery.apply import check, cut, named_tensors, replace_module
from reprune.torch.surgery.states import SELECTORS


def shrink(model: nn.Module, plan: Plan, optimizers: Sequence[Optimizer]) -> None:
    """Remove units from a model in place, with their share of what its optimisers remember.

    Every module object stays the one it was, and so does every parameter that loses nothing. A recurrent module whose
    layers end with different sizes changes its class to `RaggedLSTM`, `RaggedGRU` or `RaggedRNN`.

    Raises:
        RecipeError: As `check_optimizers` does, before anything has changed. (There may be no optimiser yet.)
    """
    before = named_tensors(model)
    cuts = _cuts(plan)
    trained = [name for name in cuts if before[name].requires_grad] if optimizers else []
    check_optimizers({name: before[name] for name in trained}, optimizers)
    check(model, plan)
    homes = dict(model.named_modules(remove_duplicate=False))
    cut(model, plan)
    _move_in(model, homes)
    after = named_tensors(model)
    for name in trained:
        _replace(before[name], after[name], cuts[name], optimizers)


def check_optimizers(parameters: Mapping[str, torch.Tensor], optimizers: Sequence[Optimizer]) -> None:
    """Raise unless these parameters can become smaller in the optimisers.

    Raises:
        RecipeError: One of them is in none of the optimisers, or an optimiser keeps something for a parameter that has
            other axes than the parameter itself.
    """
    held = {id(p): p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        if id(parameter) not in held:
            raise RecipeError(
                f"{name!r} becomes smaller, but the optimizer does not hold it: give the Pruner the optimizer of this "
                "model, or set requires_grad to False where it is not trained."
            )
    for optimizer in optimizers:
        for parameter in held.values():
            odd = [key for key, value in optimizer.state.get(parameter, {}).items() if not _fits(value, parameter)]
            if odd:
                raise RecipeError(
                    f"{type(optimizer).__name__} keeps {odd[0]!r}, which cannot be cut with the weights: give another "
                    "optimizer, or a schedule under which the model keeps its size, such as 'soft:200'."
                )


def _cuts(plan: Plan) -> dict[str, list[tuple[int, torch.Tensor]]]:
    """For every tensor that loses positions: axes, and the positions that stay."""
    removed = plan.removed()
    cuts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for slot in plan.structure.slots:
        if len(slot.positions(removed)):
            cuts.setdefault(slot.tensor, []).append((slot.axis, _stay(slot, removed)))
    return cuts


def _stay(slot: Slot, removed: dict[str, list[int]]) -> torch.Tensor:
    return torch.from_numpy(np.setdiff1d(np.arange(slot.size), slot.positions(removed)))


def _move_in(model: nn.Module, homes: Mapping[str, nn.Module]) -> None:
    """Let modules that surgery has put others in the place of become what these are."""
    for path, new in list(model.named_modules(remove_duplicate=False)):
        old = homes.get(path, new)
        if old is new:
            continue
        hooks = {key: value for key, value in vars(old).items() if "hooks" in key}
        selectors = [hook for hook in new._forward_pre_hooks.values() if isinstance(hook, SELECTORS)]
        known = sum(isinstance(hook, SELECTORS) for hook in old._forward_pre_hooks.values())
        old.__class__ = type(new)
        # Whoever registered a hook can still remove it: the dictionaries of hooks stay.
        old.__dict__ = {**vars(new), **hooks}
        for selector in selectors[known:]:
            old.register_forward_pre_hook(selector, with_kwargs=True)
        replace_module(model, new, old)


def _replace(
    old: torch.Tensor, new: torch.Tensor, cuts: list[tuple[int, torch.Tensor]], optimizers: Iterable[Optimizer]
) -> None:
    """Put a smaller parameter in the place of another in its optimisers, and cut what they keep for it."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"][:] = [new if parameter is old else parameter for parameter in group["params"]]
        if old in optimizer.state:
            kept = optimizer.state.pop(old)
            optimizer.state[new] = {key: _cut(value, cuts) for key, value in kept.items()}


def _fits(value: object, like: torch.Tensor) -> bool:
    """Whether a value is a count of steps, say, or has the axes of a parameter, some of which may be summed up."""
    if not isinstance(value, torch.Tensor):
        return not isinstance(value, (list, tuple, dict))
    return value.numel() == 1 or (
        value.ndim == like.ndim and all(size in (1, whole) for size, whole in zip(value.shape, like.shape, strict=True))
    )


def _cut(value: object, cuts: list[tuple[int, torch.Tensor]]) -> object:
    if not isinstance(value, torch.Tensor):
        return value
    for axis, stay in cuts:
        if value.ndim > axis and value.shape[axis] > 1:
            value = value.index_select(axis, stay.to(value.device))
    return value
