"""For export: which inputs of a model are states, and which of its outputs are their next values.

Recurrent modules hand states on unchanged: whatever moves them about, every number of the state that a module is given
comes from the input, and every number of the output comes from the state that it returns. So values tell them apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reprune.torch.export.example import Example
from reprune.torch.export.recurrent import recurrent_modules
from reprune.torch.export.states import StateTensor
from reprune.torch.tracing.recording import tensors_in

_STATE_NAMES = re.compile(r"hidden|state|(^|_)[hc]_?(0|n|x|prev)?(_|$)|hx|carry|memory|prev|cache")


@dataclass
class _Meeting:
    """What one recurrent module was given in its first call of a pass, and what it returned in its last."""

    given: list[list[Tensor]] = field(default_factory=list)
    ended: list[list[Tensor]] = field(default_factory=list)


def carried_states(model: nn.Module, example: Example) -> tuple[Example, list[StateTensor]]:
    """The states that a caller hands in and gets back: the example with states of the model's own width, and the pairs.

    A pruned model takes states of the width before pruning as well as its own and returns its own; a file takes one
    width only, the one that can be fed back.
    """
    probe = _distinct(example)
    meetings, outputs = _meet(model, probe)
    pairs: dict[int, list[int]] = {}
    taken: set[int] = set()
    for position, leaf in enumerate(probe.tensors):
        if leaf.is_floating_point():
            found = _next_values(leaf, meetings, outputs, taken)
            if found:
                pairs[position] = found
                taken.update(found)
    _pair_by_name(probe, outputs, pairs, taken)
    if not pairs:
        return example, []
    narrowed = _narrowed(model, example, {position: [outputs[k] for k in found] for position, found in pairs.items()})
    if narrowed is None:
        return example, []
    owners = [position for position in range(len(example.tensors)) for _ in pairs.get(position, [0])]
    states = []
    for position, found in pairs.items():
        inputs = [name for owner, name in zip(owners, narrowed.names, strict=True) if owner == position]
        states += [StateTensor(name, output) for name, output in zip(inputs, found, strict=True)]
    return narrowed, states


def _distinct(example: Example) -> Example:
    """The example with numbers that occur once in the place of its real ones."""
    generator = torch.Generator().manual_seed(0)

    def change(_: int, tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor

    return example.with_tensors(change)


def _meet(model: nn.Module, example: Example) -> tuple[list[_Meeting], list[Tensor]]:
    meetings: dict[str, _Meeting] = {}
    handles = []

    def watch(path: str, module: Any) -> None:
        pair = module.mode == "LSTM" if hasattr(module, "mode") else isinstance(module, nn.LSTMCell)

        def kinds(state: Any) -> list[list[Tensor]]:
            return [[t.clone() for t in tensors_in(kind)] for kind in (state if pair else (state,))]

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            state = args[1] if len(args) > 1 else kwargs.get("hx")
            if path not in meetings:
                meetings[path] = _Meeting(kinds(state) if state is not None else [])

        def after(_: Any, args: Any, returned: Any) -> None:
            meetings[path].ended = kinds(returned if isinstance(module, nn.RNNCellBase) else returned[1])

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))

    for path, module in recurrent_modules(model):
        watch(path, module)
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNCellBase):
            watch(path, module)
    try:
        outputs = example.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return list(meetings.values()), outputs


def _within(part: Tensor, whole: Sequence[Tensor]) -> bool:
    values = torch.cat([tensor.flatten() for tensor in whole]) if whole else torch.zeros(0)
    return bool(part.numel()) and part.dtype == values.dtype and bool(torch.isin(part, values).all())


def _next_values(leaf: Tensor, meetings: Sequence[_Meeting], outputs: Sequence[Tensor], taken: set[int]) -> list[int]:
    """Positions of the outputs that hold the state which `leaf` gives: one, or a ragged module's pieces."""
    ended = [
        tensor
        for meeting in meetings
        for kind, end in zip(meeting.given, meeting.ended, strict=False)
        if any(_within(given, [leaf]) for given in kind)
        for tensor in end
    ]
    numbers = sum(tensor.numel() for tensor in ended)
    found = [k for k, output in enumerate(outputs) if k not in taken and numbers and _within(output, ended)]
    whole = [k for k in found if outputs[k].numel() == numbers and outputs[k].dim() == leaf.dim()]
    if whole:
        return whole[-1:]  # Of a single step, the output holds the same numbers and comes first.
    pieces = [k for k in found if outputs[k].numel() < numbers]
    return pieces if sum(outputs[k].numel() for k in pieces) == numbers else []


def _pair_by_name(example: Example, outputs: Sequence[Tensor], pairs: dict[int, list[int]], taken: set[int]) -> None:
    """States of cells written by hand: inputs with the name of a state, outputs of their shape but for the width."""
    named = [
        position
        for position, (name, leaf) in enumerate(zip(example.names, example.tensors, strict=True))
        if position not in pairs and leaf.is_floating_point() and leaf.dim() and _STATE_NAMES.search(name)
    ]
    # From the end: outputs come before states, as in PyTorch's own modules.
    for position in reversed(named):
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
