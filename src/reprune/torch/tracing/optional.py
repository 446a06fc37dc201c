"""Optional states that the example leaves out: found by handing back what the model returned."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import combinations, islice
from typing import Any

import torch
from torch import nn

from reprune.torch.tracing.leaves import items, leaves, named, replaced

_TRIALS = 24
Call = tuple[tuple[Any, ...], dict[str, Any]]
IsState = Callable[[torch.Tensor], bool]


def handed_back(
    model: nn.Module, given: Call, output: Any, is_state: IsState, run: Callable[[Call], Any]
) -> Call | None:
    """A call like `given` in which arguments that were left out, or None, are what the model returned.

    Whatever the arguments are called: the parts of the output that may be states are tried in their place, and the
    first call counts that runs and returns tensors of the same shapes.

    Args:
        model: The model, for the signature of its `forward`.
        given: The arguments of the call.
        output: What it returned.
        is_state: Whether a tensor of the output may be a state.
        run: Calls a copy of the model; may raise anything.

    Returns:
        The arguments, or None when no trial succeeds.
    """
    args, kwargs = given
    parameters = inspect.signature(model.forward).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    present = {name for name, value in named(positional, args, kwargs) if value is not None}
    left = [p.name for p in parameters if p.default is None and p.name not in present]
    parts = [replaced(part, lambda _, tensor: tensor.detach().clone()) for part in _parts(output, is_state)]
    shapes = [tensor.shape for _, tensor in leaves(output)]
    for chosen in islice(_assignments(left, parts), _TRIALS):
        # By name from the first one that was left out on: those before it keep their positions.
        head = next((k for k, value in enumerate(args) if value is None), len(args))
        rest = {name: value for name, value in zip(positional[head:], args[head:], strict=False) if name not in chosen}
        trial = args[:head], {**rest, **kwargs, **chosen}
        try:
            returned = run(trial)
        except Exception:  # The model's own errors say that this is no state.
            continue
        if [tensor.shape for _, tensor in leaves(returned)] == shapes:
            return trial
    return None


def _parts(value: Any, is_state: IsState) -> list[Any]:
    """The largest parts of a nest in which every tensor may be a state."""
    tensors = [tensor for _, tensor in leaves(value)]
    if tensors and all(map(is_state, tensors)):
        return [value]
    return [part for _, item in items(value) for part in _parts(item, is_state)]


def _nests(value: Any) -> Iterator[Any]:
    """A nest, and all that it holds."""
    yield value
    for _, item in items(value):
        yield from _nests(item)


def _assignments(left: list[str], parts: list[Any]) -> Iterator[dict[str, Any]]:
    """Ways to hand parts to arguments, those first that hand over most."""
    runs = [parts[k : k + count] for count in range(len(parts), 1, -1) for k in range(len(parts) - count + 1)]
    for run in runs:
        for names in combinations(left, len(run)):
            yield dict(zip(names, run, strict=True))
        for name in left:
            yield {name: tuple(run)}
    for nest in [nest for part in parts for nest in _nests(part)]:
        for name in left:
            yield {name: nest}
