"""For export: which inputs of a model are states, and which of its outputs are their next values.

The trace tells, which follows units from what `forward` takes to what it returns. What it has no units of, such as a
running mean, or the memory of a recurrence that only multiplies number by number, is known by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reprune.core.errors import RepruneError
from reprune.core.layers import CarriedState, Structure
from reprune.torch.export.example import Example, require_runs
from reprune.torch.export.meanings import recurrent_weights
from reprune.torch.export.states import StateTensor
from reprune.torch.tracing.leaves import Path, leaves, named, positional_names
from reprune.torch.tracing.record import record
from reprune.torch.tracing.running.shortening import shortened

_STATE_NAMES = re.compile(r"hidden|state|(^|_)[hc]_?(0|n|x|prev)?(_|$)|hx|carry|memory|prev|cache")


@dataclass
class Carried:
    """The states that a caller hands in and gets back.

    Attributes:
        example: The example, with states of the model's own width.
        states: The inputs that are states, and where their next values are returned.
        left_out: Arguments for states that the example leaves out, though the model returns them.
        weights: Names of the model's recurrent weights.
    """

    example: Example
    states: list[StateTensor]
    left_out: list[str]
    weights: list[str] = field(default_factory=list)


def carried_states(model: nn.Module, example: Example) -> Carried:
    """Find the states that a caller hands in and gets back.

    A pruned model takes states of the width before pruning as well as its own and returns its own; a file takes one
    width only, the one that can be fed back.
    """
    outputs = require_runs(model, example, "example")
    structure = _traced(model, example)
    weights = [] if structure is None else recurrent_weights(structure)
    pairs, left_out = ({}, []) if structure is None else _followed(model, example, structure.states)
    _pair_by_name(example, outputs, pairs)
    if not pairs:
        return Carried(example, [], left_out, weights)
    narrowed = _narrowed(model, example, {position: [outputs[k] for k in found] for position, found in pairs.items()})
    if narrowed is None:
        return Carried(example, [], left_out, weights)
    owners = [position for position in range(len(example.tensors)) for _ in pairs.get(position, [0])]
    states = []
    for position, found in pairs.items():
        inputs = [name for owner, name in zip(owners, narrowed.names, strict=True) if owner == position]
        states += [StateTensor(name, output) for name, output in zip(inputs, found, strict=True)]
    return Carried(narrowed, states, left_out, weights)


def _traced(model: nn.Module, example: Example) -> Structure | None:
    """Where the model's units live, if it has any that the trace follows."""
    try:
        batch, _ = shortened(model, (example.args, example.kwargs), _called)
        return record(model, batch, _called, share=True).structure()
    except RepruneError:
        return None


def _followed(
    model: nn.Module, example: Example, states: Iterable[CarriedState]
) -> tuple[dict[int, list[int]], list[str]]:
    """Positions of the inputs that are states, with those of the outputs that hold their next values; what is left out.

    A ragged module returns a state in several tensors: the first of them has the input beside it, the others none.
    """
    pairs: dict[int, list[int]] = {}
    given = _positions(example.tensors, _given(model, example))
    returned = example.returned(model)
    back = _positions(pytree.tree_leaves(returned), leaves(returned))
    left_out: dict[str, None] = {}
    held: list[int] = []
    for state in states:
        if state.given is not None:
            held = []
            if state.given.path in given:
                held = pairs.setdefault(given[state.given.path], [])
            elif state.returned is not None:
                left_out[str(state.given.path[0])] = None
        if state.returned is not None:
            held.append(back[state.returned.path])
    return {position: found for position, found in pairs.items() if found}, list(left_out)


def _called(model: nn.Module, batch: Any) -> Any:
    args, kwargs = batch
    return model(*args, **kwargs)


def _positions(tensors: list[Any], found: Iterator[tuple[Path, Tensor]]) -> dict[Path, int]:
    """Where tensors that are found by path stand in a flat list."""
    places = {
        id(tensor): position
        for position, tensor in reversed(list(enumerate(t for t in tensors if isinstance(t, Tensor))))
    }
    return {path: places[id(tensor)] for path, tensor in found if id(tensor) in places}


def _given(model: nn.Module, example: Example) -> Iterator[tuple[Path, Tensor]]:
    for name, value in named(positional_names(model.forward), example.args, example.kwargs):
        yield from leaves(value, (name,))


def _pair_by_name(example: Example, outputs: Sequence[Tensor], pairs: dict[int, list[int]]) -> None:
    """Add inputs with the name of a state, and outputs of their shape but for the width."""
    taken = {output for found in pairs.values() for output in found}
    alike_named = [
        position
        for position, (name, leaf) in enumerate(zip(example.names, example.tensors, strict=True))
        if position not in pairs and leaf.is_floating_point() and leaf.dim() and _STATE_NAMES.search(name)
    ]
    # From the end: outputs come before states, as in PyTorch's own modules.
    for position in reversed(alike_named):
        leaf = example.tensors[position]
        alike = [
            k
            for k, output in enumerate(outputs)
            if k not in taken and output.dtype == leaf.dtype and output.dim() and output.shape[:-1] == leaf.shape[:-1]
        ]
        choice = [k for k in alike if outputs[k].shape == leaf.shape] or alike
        if choice:
            pairs[position] = choice[-1:]
            taken.add(choice[-1])


def _narrowed(model: nn.Module, example: Example, states: dict[int, list[Tensor]]) -> Example | None:
    """The example with states as the model returns them, where their sizes differ; None when it does not take those."""
    change = {
        position: found[0] if len(found) == 1 else tuple(found)
        for position, found in states.items()
        if len(found) > 1 or found[0].shape != example.tensors[position].shape
    }
    if not change:
        return example
    leaves = iter(range(len(example.tensors)))
    args, kwargs = pytree.tree_map(
        lambda leaf: change.get(next(leaves), leaf) if isinstance(leaf, Tensor) else leaf,
        (example.args, example.kwargs),
    )
    narrowed = Example.of(model, args or kwargs)
    try:
        again = narrowed.call(model)
    except (RuntimeError, ValueError, TypeError):
        return None
    expected = {output.shape for found in states.values() for output in found}
    return narrowed if expected <= {output.shape for output in again} else None
