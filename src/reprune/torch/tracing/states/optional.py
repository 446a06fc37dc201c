"""Optional states that the example leaves out: found by handing back what the model returned."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import combinations, islice
from typing import Any

import torch

from reprune.torch.tracing.leaves import items, leaves, named, replaced

_TRIALS = 24
Call = tuple[tuple[Any, ...], dict[str, Any]]


def handed_back(
    method: Callable[..., Any],
    given: Call,
    output: Any,
    worth: Callable[[torch.Tensor], int],
    run: Callable[[Call], Any],
) -> Call | None:
    """A call like `given` in which arguments that were left out, or None, are what the model returned.

    Whatever the arguments are called: the parts of the output that may be states are tried in their place, those first
    that hold most of them, and the first call counts that runs and returns other values in tensors of the same shapes,
    or that runs at all.

    Args:
        method: What is called, for its signature.
        given: The arguments of the call.
        output: What the model returned.
        worth: How likely a tensor of the output is a state; 0 where it is none.
        run: Calls a copy of the model with these arguments; may raise anything.

    Returns:
        The arguments, or None when no trial succeeds.
    """
    args, kwargs = given
    parameters = inspect.signature(method).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    given_names = dict(named(positional, args, kwargs))
    left = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and _is_open(given_names.get(p.name, p.default))]
    before = [tensor for _, tensor in leaves(output)]
    shapes = [tensor.shape for tensor in before]
    unchanged: Call | None = None
    for chosen in islice(_assignments(left, output, worth), _TRIALS):
        # By name from the first one that was left out on: those before it keep their positions.
        head = next((k for k, value in enumerate(args) if _is_open(value)), len(args))
        rest = {name: value for name, value in zip(positional[head:], args[head:], strict=False) if name not in chosen}
        states = replaced(chosen, lambda _, tensor: tensor.detach().clone())
        trial = args[:head], {**rest, **kwargs, **states}
        try:
            returned = run(trial)
        except Exception:  # The model's own errors say that this is no state.
            continue
        found = [tensor for _, tensor in leaves(returned)]
        if [tensor.shape for tensor in found] != shapes:
            continue
        if not all(map(torch.equal, found, before)):
            return trial
        unchanged = unchanged or trial  # Read by nobody, or masked away on this example.
    return unchanged


def _is_open(value: Any) -> bool:
    """Whether an argument is None, or a nest that holds nothing else: `(None, None)` for the states of two layers."""
    held = [item for _, item in items(value)]
    return value is None or (bool(held) and all(map(_is_open, held)))


def _assignments(left: list[str], output: Any, worth: Callable[[torch.Tensor], int]) -> list[dict[str, Any]]:
    """Ways to hand parts of the output to arguments, those first that hand over most."""
    found: list[tuple[int, dict[str, Any]]] = []
    for nest in [(output,), *_nests(output)]:
        for run in _runs([item for _, item in items(nest)]):
            values = [worth(tensor) for _, tensor in leaves(run)]
            if not values or not all(values):
                continue
            found += [(sum(values), dict(zip(names, run, strict=True))) for names in combinations(left, len(run))]
            if len(run) > 1:
                found += [(sum(values), {name: tuple(run)}) for name in left]
    return [chosen for _, chosen in sorted(found, key=lambda pair: -pair[0])]


def _nests(value: Any) -> Iterator[Any]:
    """A nest, and all nests within it."""
    yield value
    for _, item in items(value):
        yield from _nests(item)


def _runs(held: list[Any]) -> Iterator[list[Any]]:
    """Neighbours, the longest runs first."""
    for count in range(len(held), 0, -1):
        for k in range(len(held) - count + 1):
            yield held[k : k + count]
