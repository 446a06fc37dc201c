"""The tracer: labels travel with the activations of one real forward pass.

Two modes watch the pass (`modes.py`). Labels live beside storages (`labels.py`), so views and in-place writes need no
rules; every other operation has one in `rules/`, or pins what it touches.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from reprune.core.layers import Role, Site
from reprune.torch.tracing.labels import (
    NONE,
    TAG,
    Ids,
    ShadowMemory,
    compact,
    squeeze_constant,
    storage_id,
    unit_ids,
)
from reprune.torch.tracing.location import here
from reprune.torch.tracing.origins import Origins
from reprune.torch.tracing.recording import Axis, Loss, Recording, RecurrentLayer, State, Summary
from reprune.torch.tracing.sizes.sizes import AxisSize, Comparison, Expression, SizeUse
from reprune.torch.tracing.sizes.widened import Widened
from reprune.torch.tracing.structure.widths import MODULES, Widths
from reprune.torch.tracing.weights import DERIVED, LAST, Weights


class Tracer:
    """Rules' view of the trace: labels of tensors, labels of parameter axes, and what is to be recorded."""

    def __init__(self, model: nn.Module, widths: Collection[str] = ()) -> None:
        self.memory = ShadowMemory()
        self.recording = Recording()
        self.tags: list[Expression] = []
        self.states: dict[int, State] = {}
        self.summaries: dict[int, list[Summary]] = {}
        self.lost: dict[int, Loss] = {}
        self.widened = Widened()
        self._own_zeros: dict[int, torch.Tensor] = {}
        self.inside_module = 0
        self.inside_piece = False
        self.pauses = 0
        self.derived: dict[Axis, list[Axis]] = {}
        self.opaque: set[str] = set()
        self.widths = Widths(frozenset(widths))
        self.given: Sequence[Any] = ()
        # By the identity of the weight: a tied one goes by another name.
        self._paths: dict[tuple[int, str], str] = {}
        for path, module in model.named_modules():
            kind = next((kind for type_, kind in MODULES.items() if isinstance(module, type_)), None)
            for leaf in ("weight", "in_proj_weight"):
                weight = module._parameters.get(leaf)
                if kind is not None and weight is not None:
                    self._paths.setdefault((id(weight), kind), path)
        self.weights = Weights(model)
        self.tensors = self.weights.tensors
        self.origins = Origins(LAST)

    # -- labels of tensors -------------------------------------------------------------------------------------------

    def is_parameter(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is a view of a parameter or buffer."""
        return self.weights.hold(tensor)

    def owner(self, tensor: torch.Tensor) -> str | None:
        """Name of the parameter or buffer that the tensor is a view of, or None."""
        return self.weights.owner(tensor)

    def labels(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Labels of the tensor's elements, or None when none of them has any."""
        if self.is_parameter(tensor):
            return self.weights.element_ids(tensor)
        found = self.memory.get(tensor)
        return found if found is not None and bool((compact(found) != NONE).any()) else None

    def units(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Labels of the units in an activation (0 or more), or None when it holds none."""
        found = None if self.is_parameter(tensor) else self.memory.get(tensor)
        if found is None or not found.numel():
            return None
        small = compact(found)
        highest, lowest = int(small.max()), int(small.min())
        if highest <= NONE:
            return None
        if self.widths.layers:
            return self.representatives(squeeze_constant(small.clamp(min=NONE))).expand(found.shape)
        return found if lowest >= NONE else small.clamp(min=NONE).expand(found.shape)

    def representatives(self, labels: torch.Tensor) -> torch.Tensor:
        """One label for every class: what goes together must look the same wherever a rule asks what varies."""
        small = compact(labels)
        values = small.cpu().numpy()
        roots = np.where(values < TAG, self.recording.couplings.roots(values), values)
        return torch.from_numpy(roots).to(labels.device).expand(labels.shape)

    def is_weight(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is a parameter, a view of one, or computed from parameters alone."""
        if self.is_parameter(tensor):
            return True
        found = self.memory.get(tensor)
        if found is None:
            return False
        small = compact(found)
        # Not what stands beside units, or beside what was handed in: `torch.cat([x, self.h0.expand(batch, -1)], 1)`.
        others = (small > NONE) | (small <= -LAST)
        return bool(((small < NONE) & (small > -LAST)).any()) and not bool(others.any())

    def origin(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Labels of the elements that came from outside this call (see `origins.py`), or None when there are none."""
        return None if self.is_parameter(tensor) else self.origins.of(self.memory.get(tensor))

    def follow(self, inputs: Iterable[torch.Tensor], outputs: Iterable[torch.Tensor]) -> None:
        """Note what the results of an operation were computed from."""
        inputs = list(inputs)
        # Pieces of one parameter are weights of their own: that of the input, say, and that of the state beside it.
        weights = [
            (name, int(tensor.storage_offset()))
            for tensor in inputs
            for name in [self.owner(tensor)]
            if name is not None
        ]
        self.recording.provenance.follow([t for t in inputs if not self.is_parameter(t)], outputs, weights)

    def hold(self, tensor: torch.Tensor) -> None:
        """Keep the memory behind a tensor while the trace lasts: its identity is the key of what is known of it."""
        self.memory.hold(tensor)

    # -- weights computed from parameters ------------------------------------------------------------------------------

    def derive(
        self, tensor: torch.Tensor, axes: Sequence[Sequence[tuple[torch.Tensor, int]]], plain: bool
    ) -> torch.Tensor:
        """Take a tensor computed from weights as a weight of its own, whose axes are tied to those it was made of.

        Args:
            tensor: The tensor.
            axes: For each of its axes, the weights and axes that lie along it.
            plain: Whether zeros, and corrections, in all that it was made of are those of the tensor.

        Returns:
            Labels of its elements.
        """
        name, base = self.weights.derive(tensor)
        for dim, sources in enumerate(axes):
            parts = self.derived[name, dim] = []
            for weight, source in sources:
                for axis, line in self.weight_lines(weight, source, "follows") if weight.size(source) > 1 else ():
                    self.couple_lines(self.axis(name, dim, "follows"), line)
                    parts.append(axis)
        if not plain:
            self.opaque.add(name)
        return -(base + torch.arange(tensor.numel(), device=tensor.device)).view(tensor.shape)

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by name, without weights that are computed from them."""
        return {name: tensor for name, tensor in self.tensors.items() if not name.startswith(DERIVED)}

    def real_axes(self, axis: Axis) -> list[Axis]:
        """The axes of parameters that a weight's axis is made of; of a parameter, itself."""
        return (
            [real for part in self.derived[axis] for real in self.real_axes(part)] if axis in self.derived else [axis]
        )

    # -- labels of parameter axes ------------------------------------------------------------------------------------

    def axis(self, name: str, axis: int, role: Role) -> Ids:
        """Labels of the positions on one axis of a parameter, made on first use."""
        key = (name, axis % self.tensors[name].ndim)
        if key not in self.recording.axes:
            size = self.tensors[name].shape[key[1]]
            # The only position of an axis cannot be removed: it needs no name.
            self.recording.axes[key] = self.recording.couplings.new(size) if size > 1 else np.zeros(1, dtype=np.int64)
        self.recording.roles.setdefault(key, set()).add(role)
        for part in self.derived.get(key, ()):
            self.axis(*part, role)
        return self.recording.axes[key]

    def set_axis(self, name: str, axis: int, labels: Ids, role: Role) -> None:
        """Give the positions on one axis of a parameter these labels, coupling them with labels they already have."""
        if (name, axis) in self.recording.axes:
            self.recording.couplings.union(self.recording.axes[name, axis], labels)
        self.recording.axes[name, axis] = labels
        self.recording.roles.setdefault((name, axis), set()).add(role)

    def weight_lines(self, weight: torch.Tensor, dim: int, role: Role) -> list[tuple[Axis, Ids]]:
        """Parameter axes that lie along `dim` of a weight, each with the labels of the weight's positions on it.

        A weight stacked from several parameters gives one entry each, 0 where a position belongs to another one.
        """
        return [
            (axis, np.where(held, self.axis(*axis, role)[places], NONE))
            for axis, places, held in self.weights.along(weight, dim % weight.ndim, self.memory)
        ]

    def units_by_layer(self, labels: torch.Tensor) -> dict[str, Ids]:
        """The distinct labels of each recurrent layer that occur in `labels`."""
        found = unit_ids(labels)
        couplings, held = self.recording.couplings, {}
        spaces = couplings.space(found)
        for name, layer in self.recording.layers.items():
            mine = found[spaces == couplings.space(layer.labels[:1])]
            if len(mine):
                held[name] = mine
        return {**held, **self.widths.holding(found, couplings)}

    def is_recurrent(self, labels: torch.Tensor) -> bool:
        """Whether units of a recurrent layer are among the labels."""
        return bool(self.units_by_layer(labels).keys() & self.recording.layers.keys())

    def goes_round(self, labels: Ids) -> bool:
        """Whether these are made by weights that have been applied to what they helped to produce."""
        recording = self.recording
        names = recording.provenance.recurrent & recording.provenance.driven
        own = [line for axis, line in recording.axes.items() if axis[0] in names and "own" in recording.roles[axis]]
        return any(
            bool(np.isin(recording.couplings.roots(labels), recording.couplings.roots(line)).any()) for line in own
        )

    @property
    def layers(self) -> Mapping[str, RecurrentLayer]:
        """Recurrent layers and widths so far, by address."""
        return {**self.recording.layers, **self.widths.layers}

    def begin(self, kind: str, weight: torch.Tensor, dim: int) -> None:
        """Labels of a weight's rows reach an activation: a width begins, if such weights count."""
        if kind not in self.widths.kinds:
            return
        for (name, axis), _ in self.weight_lines(weight, dim, "own"):
            path = self._paths.get((id(self.tensors[name]), kind))
            if path is not None or self.widths.everywhere:
                self.widths.begin(kind, name if path is None else path, self.axis(name, axis, "own"))

    def join(self, labels: torch.Tensor, dims: Sequence[int]) -> bool:
        """Couple the labels along these dimensions, so that they do not vary there; returns whether that could be.

        Units of recurrent layers are never coupled with each other.
        """
        if not self.widths.everywhere or self.is_recurrent(labels):
            return False
        moved = compact(labels).movedim(list(dims), list(range(-len(dims), 0)))
        for row in np.unique(moved.reshape(-1, prod(moved.shape[-len(dims) :])).cpu().numpy(), axis=0):
            names = row[(row > NONE) & (row < TAG)]
            self.recording.couplings.union(np.full(len(names), names[0] if len(names) else NONE), names)
        return True

    @contextmanager
    def given_sizes(self, sizes: Sequence[Any]) -> Iterator[None]:
        """In this context, a view is made with these sizes, as the model's code gives them."""
        self.given, before = sizes, self.given
        try:
            yield
        finally:
            self.given = before

    # -- what rules record -------------------------------------------------------------------------------------------

    def couple(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Couple two tensors of unit labels element by element (they broadcast); returns the labels of the result."""
        shape = torch.broadcast_tensors(first, second)[0].shape  # type: ignore[no-untyped-call]
        first, second = compact(first).clamp(min=0), compact(second).clamp(min=0)
        wide_first, wide_second = first + torch.zeros_like(second), second + torch.zeros_like(first)
        differ = (wide_first != wide_second) & (wide_first != NONE) & (wide_second != NONE)
        if bool(differ.any()):
            pairs = torch.stack([wide_first[differ], wide_second[differ]], 1)
            distinct = np.unique(pairs.cpu().numpy(), axis=0)
            self._couple_pairs(distinct)
            wide_second = _renamed(wide_second, distinct[:, ::-1])
        prefer_second = (wide_first == NONE) | ((wide_first >= TAG) & (wide_second != NONE))
        return torch.where(prefer_second, wide_second, wide_first).expand(shape)

    def meet_tags(self, old: torch.Tensor | None, new: torch.Tensor) -> None:
        """Units are written into a tensor whose length was taken from an attribute."""
        if old is not None and bool((old >= TAG).any()):
            self.couple(torch.where(old >= TAG, old, NONE), new)

    def couple_lines(self, first: Ids, second: Ids) -> None:
        """Couple two lines of labels of equal length."""
        self._couple_pairs(np.stack([first, second], 1))

    def _couple_pairs(self, pairs: Ids) -> None:
        if self.recording.couplings.union(pairs[:, 0], pairs[:, 1]):
            self.recording.couplers.append((pairs[:, 0], pairs[:, 1], here("coupling")))
        for tags, units in (pairs.T, pairs.T[::-1]):
            for tag in np.unique(tags[tags >= TAG]):
                found, size = np.unique(units[tags == tag]), self.tags[tag - TAG]
                if len(found[found > NONE]) == size.value:  # Not where a part is written, or a unit stands repeatedly.
                    self.constrain(size, found)

    def meet_widened(self, tensor: torch.Tensor, units: torch.Tensor) -> None:
        """Units meet a tensor without units, position by position."""
        for expression, line in self.widened.meeting(tensor, units):
            self.constrain(expression, line)

    def constrain(self, expression: Expression, labels: Ids, hard: bool = True) -> None:
        """Record that a size taken from an attribute is the number of these labels."""
        labels = labels[labels < TAG]
        if (labels > NONE).any():
            self.recording.sizes.append(SizeUse(expression, labels, hard))

    def compare_sizes(self, compared: Iterable[Comparison]) -> None:
        """Note what the model's code found equal: what an attribute is compared with is what it is the size of."""
        for first, second, steady in compared:
            if steady:
                self.recording.steady.append((first, second))
                continue
            for one, other in ((first, second), (second, first)):
                for term in other.terms:
                    if isinstance(term, AxisSize) and len(other.terms) == 1 and not other.constant:
                        self.constrain(one, term.labels)

    def tag(self, expression: Expression) -> int:
        """The label of tensors whose length was taken from an attribute."""
        self.tags.append(expression)
        return TAG + len(self.tags) - 1

    def pin(self, labels: torch.Tensor | None, operation: str, reason: str, site: Site | None = None) -> None:
        """Record that the units in `labels` must stay; the site is where the user's code is now unless given."""
        if labels is not None:
            ids = unit_ids(labels)
            if len(ids):
                self.recording.pins.append((ids, site or here(operation), reason))

    def suspect(self, labels: torch.Tensor, operation: str) -> None:
        """Record a place that may hold a size the trace cannot see, for the message if the rehearsal fails."""
        self.recording.suspects.append((unit_ids(labels), here(operation)))

    def note_own_zeros(self, name: str, args: Sequence[Any], out: torch.Tensor) -> None:
        """A recurrent module makes zero states because it was given none, or stacks such."""
        if name != "stack" or all(self.is_own_zeros(tensor) for tensor in args[0]):
            self._own_zeros[storage_id(out)] = out  # Held on to, so that no other tensor gets its address.

    def is_own_zeros(self, tensor: torch.Tensor) -> bool:
        """Whether a recurrent module made this state itself."""
        return storage_id(tensor) in self._own_zeros

    def is_stacked_state(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is a whole final state of all layers, rather than a piece of one."""
        found = self.states.get(storage_id(tensor))
        return found is not None and tensor.ndim >= found.ndim

    def takes_piece(self, name: str, args: Sequence[Any]) -> bool:
        """Whether an operation takes single layers out of a stacked state, as it would out of a tuple: `h_n[-1]`."""
        if name == "__getitem__":
            whole = type(args[1]) is int
        else:
            whole = name == "unbind" and len(args) == 2 and sys._getframe(2).f_code.co_name == "__iter__"
        return whole and self.is_stacked_state(args[0])

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """In this context, what is done with a stacked state needs no equal numbers of units."""
        self.inside_piece = True
        try:
            yield
        finally:
            self.inside_piece = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """In this context, operations are not looked at."""
        self.pauses += 1
        try:
            yield
        finally:
            self.pauses -= 1

    def touch(self, tensor: torch.Tensor) -> None:
        """A stacked final state is used: its layers must keep equal numbers of units."""
        state = self.states.pop(storage_id(tensor), None)
        if state is not None and len(state.layers) > 1:
            self.recording.keep_equal(state.layers, here("stacked state"))


def _renamed(labels: torch.Tensor, pairs: Ids) -> torch.Tensor:
    """Labels with the first of each pair replaced by the second one.

    Where one of two coupled operands has no units (padding), the other one's show; both must show under one name, or
    the units would seem to vary over time.
    """
    old, where = np.unique(pairs[:, 0], return_index=True)
    new = pairs[where, 1]
    units = (old > NONE) & (old < TAG) & (new < TAG)
    old, new = old[units], new[units]
    if not len(old):
        return labels
    values = labels.cpu().numpy()
    places = np.minimum(np.searchsorted(old, values), len(old) - 1)
    return torch.from_numpy(np.where(old[places] == values, new[places], values)).to(labels.device)
