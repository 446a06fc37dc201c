"""States of a pruned model: those of the old width go on being accepted, and those that modules keep are cut."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch import nn

from reprune.core.layers import Port, Structure
from reprune.core.plan import Plan
from reprune.torch.ragged.base import RaggedBase
from reprune.torch.ragged.modules import StateSelector
from reprune.torch.tracing.leaves import Path, positional_names, replaced, replaced_arguments
from reprune.torch.tracing.running.entries import Entry, entry_of


def accept_states(model: nn.Module, plan: Plan) -> None:
    """Cut the states that the pruned model keeps, and let it take states of the old width."""
    _cut_kept_states(model, plan)
    _accept_written_sizes(model, plan)
    given: dict[Entry, list[Selection]] = {}
    for state in plan.structure.states:
        if state.given is not None:
            given.setdefault(entry_of(state.given.path), []).append(Selection.of(state.given, plan))
    for entry, selections in given.items():
        module = model.get_submodule(entry.owner)
        selector = InputSelector(entry, getattr(module, entry.method), selections)
        if selector.selections and entry.method == "forward":
            module.register_forward_pre_hook(selector, with_kwargs=True)
        elif selector.selections:
            vars(module)[entry.method] = SelectingMethod(module, entry.method, selector)


class Selection:
    """The positions of one state tensor that are left.

    Args:
        path: Where the tensor is (see `Port.path`).
        axis: The axis of the units.
        size: Its length before pruning.
        stay: Positions that are left: one list for the whole tensor, or one for every index of `along`.
        along: The axis on which states of several layers are stacked, or None.
    """

    def __init__(self, path: Path, axis: int, size: int, stay: list[list[int]], along: int | None) -> None:
        self.path, self.axis, self.size, self.along = path, axis, size, along
        # Plain tensors, moved when used: a cache per device would hold on to the fake tensors of a tracing compiler.
        self.stay = [torch.tensor(positions, dtype=torch.int64) for positions in stay]

    @classmethod
    def of(cls, port: Port, plan: Plan) -> Selection:
        """What a plan leaves of a port."""
        stay = [positions.tolist() for positions in port.stay(plan.removed())]
        return cls(port.path, port.axis, port.size, stay, port.along)

    @property
    def cuts(self) -> bool:
        """Whether any position goes."""
        return any(len(positions) < self.size for positions in self.stay)

    def __call__(self, state: torch.Tensor) -> torch.Tensor:
        """The entries that are left of a state of the old width; a state of another width as it is."""
        if state.ndim <= max(self.axis, self.along or 0) or state.shape[self.axis] != self.size:
            return state
        if self.along is None:
            return state.index_select(self.axis, self.stay[0].to(state.device))
        if state.shape[self.along] != len(self.stay):
            return state
        pieces = [
            state.narrow(self.along, k, 1).index_select(self.axis, positions.to(state.device))
            for k, positions in enumerate(self.stay)
        ]
        return torch.cat(pieces, self.along)


class InputSelector:
    """Let a pruned model take states of the width they had before: a forward pre-hook, or before another method.

    A state that the model itself returned has the new width and passes as it is. Like sizes, the indices describe the
    structure: they travel with `copy.deepcopy`, pickle and `torch.export`, and stay out of the `state_dict`.

    Args:
        entry: The method that takes them.
        method: The same, for its signature.
        selections: What is left of each state among its arguments.
    """

    def __init__(self, entry: Entry, method: Callable[..., Any], selections: list[Selection]) -> None:
        self.entry = entry
        self.names = positional_names(method)
        self.selections = [selection for selection in selections if selection.cuts]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments with states of the old width cut."""
        by_path = {selection.path: selection for selection in self.selections}

        def change(path: Path, tensor: torch.Tensor) -> torch.Tensor:
            path = self.entry.path(path)
            return by_path[path](tensor) if path in by_path else tensor

        return replaced_arguments(self.names, args, kwargs, change)

    def __repr__(self) -> str:
        return f"InputSelector({[selection.path for selection in self.selections]})"


class SelectingMethod:
    """A method, other than `forward`, of a pruned model that takes states of the width they had before.

    Args:
        module: The model, or a part of it.
        method: The method's name.
        selector: What it does to the arguments.
    """

    def __init__(self, module: nn.Module, method: str, selector: InputSelector) -> None:
        self.module, self.method, self.selector = module, method, selector
        self.before = vars(module).get(method)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The method itself, for its signature and its documentation."""
        method: Callable[..., Any] = self.before or getattr(type(self.module), self.method).__get__(self.module)
        return method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The method, on states of its own width."""
        args, kwargs = self.selector(self.module, args, kwargs)
        return self.__wrapped__(*args, **kwargs)


SELECTORS = (InputSelector, StateSelector)
"""Hooks that a pruned model or module has so that it takes states of the old width."""


def _cut_kept_states(model: nn.Module, plan: Plan) -> None:
    """What modules keep from calls before pruning: the entries of the units that are left."""
    for port in plan.structure.kept_states:
        module = vars(model.get_submodule(str(port.path[0])))
        name, rest, selection = str(port.path[1]), port.path[2:], Selection.of(port, plan)

        def change(path: Path, tensor: torch.Tensor, selection: Selection = selection, rest: Path = rest) -> Any:
            return selection(tensor) if path == rest else tensor

        if name in module:
            module[name] = replaced(module[name], change)


def _accept_written_sizes(model: nn.Module, plan: Plan) -> None:
    """Let modules whose states are made in a written-out size go on accepting that size."""
    structure = plan.structure
    given = {
        name.split(":")[0] for name in structure.outside_states if len(plan.kept[name]) < structure.layers[name].units
    }
    for path in given:
        module = model.get_submodule(path)
        names = [name for name in structure.layers if name.split(":")[0] == path]
        cells = _ordered(structure, [name for name in names if ":projection" not in name])
        projections = _ordered(structure, [name for name in names if ":projection" in name])
        hidden = projections or cells

        def sizes(of: list[list[str]]) -> list[int]:
            return [sum(structure.layers[name].units for name in parts) for parts in of]

        def kept(of: list[list[str]]) -> list[list[int]]:
            return [[_start(structure, name) + unit for name in parts for unit in plan.kept[name]] for parts in of]

        cell_sizes, cell_kept = (sizes(cells), kept(cells)) if projections else (None, None)
        selector = StateSelector(sizes(hidden), kept(hidden), cell_full_sizes=cell_sizes, cell_kept=cell_kept)
        if isinstance(module, RaggedBase):
            module.state_selector = selector
        else:
            module.register_forward_pre_hook(selector, with_kwargs=True)


def _ordered(structure: Structure, names: list[str]) -> list[list[str]]:
    """Layers, each with its parts, in the order of PyTorch's stacked states: by layer, then forward before reverse."""

    def key(name: str) -> tuple[int, bool]:
        suffix = name.split(":")[1]
        return int(suffix.removesuffix("_reverse")[1:]), suffix.endswith("_reverse")

    ordered = sorted(names, key=lambda name: (*key(name), _start(structure, name)))
    return [list(parts) for _, parts in groupby(ordered, key=key)]


def _start(structure: Structure, name: str) -> int:
    part = structure.layers[name].part
    return 0 if part is None else part[1]
