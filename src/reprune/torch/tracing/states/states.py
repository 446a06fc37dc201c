"""States of the model's interface: found in a first call, followed in a second one.

In the first call every tensor that comes from outside is a source (`origins.py`), and what it meets is noted. A source
that meets units as a state does, and for which the model returns a tensor of the same units, is a carried state. In
the second call it carries the labels of these units, as if the caller had handed back what the first call returned: all
that the model's code does to it is then followed as for any other activation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from reprune.torch.tracing.labels import NONE, Ids, storage_id
from reprune.torch.tracing.leaves import Path, leaves
from reprune.torch.tracing.origins import Source
from reprune.torch.tracing.recording import Labelled
from reprune.torch.tracing.running.copies import fresh
from reprune.torch.tracing.running.entries import Entry, entered
from reprune.torch.tracing.states.optional import Call
from reprune.torch.tracing.structure.structure import Builder
from reprune.torch.tracing.tracer import Tracer

_OWN_FIELDS = {"_parameters", "_modules", "_flat_weights"}


class Interface:
    """Labels what the model is given and what its modules keep, whenever it is entered.

    Args:
        tracer: The trace.
        model: The model that is traced.
        everywhere: Whether it may be entered by other methods than its `forward` (`entered`).
    """

    def __init__(self, tracer: Tracer, model: nn.Module, *, everywhere: bool) -> None:
        self.tracer = tracer
        self.model = model
        self.everywhere = everywhere
        self.states: dict[tuple[bool, Path], torch.Tensor] = {}
        """Labels of the states that are known, by whether a module keeps them and by path."""
        self.given: dict[Entry, Call] = {}
        """What the caller gave each of the methods by which the model was entered."""
        self.instead: dict[Entry, Call] = {}
        """What these are given in the place of it."""
        self._first = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """In this context, a call of the model labels what it is given and what is kept."""
        self._first = len(self.tracer.origins.sources)
        with entered(self.model, self._label, everywhere=self.everywhere):
            yield

    @property
    def sources(self) -> list[Source]:
        """What came from outside in the last call."""
        return self.tracer.origins.sources[self._first :]

    def _label(self, entry: Entry, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.given[entry] = args, kwargs
        args, kwargs = fresh(self.instead[entry]) if entry in self.instead else (args, kwargs)
        for path, tensor in kept_tensors(self.model):
            self._label_one(path, tensor, held=True)
        seen: set[int] = set()

        def change(path: Path, tensor: torch.Tensor) -> torch.Tensor:
            if storage_id(tensor) in seen:
                tensor = tensor.clone()  # One tensor given twice is two sources.
            seen.add(storage_id(tensor))
            self._label_one(path, tensor, held=False)
            return tensor

        with self.tracer.paused():
            return entry.replaced(method, args, kwargs, change)

    def _label_one(self, path: Path, tensor: torch.Tensor, *, held: bool) -> None:
        tracer = self.tracer
        if any(type(part) not in (str, int) for part in path):
            return  # A key that no plan can name.
        if not tensor.is_floating_point() or tensor.numel() < 2 or tracer.is_weight(tensor):
            return
        known = self.states.get((held, path))
        if tracer.units(tensor) is not None:
            return  # What this trace computed before.
        if known is not None and known.shape == tensor.shape:
            tracer.memory.set(tensor, known)
        else:
            tracer.memory.set(tensor, tracer.origins.add(path, tensor, held=held))


def kept_tensors(model: nn.Module) -> Iterator[tuple[Path, torch.Tensor]]:
    """Tensors that modules keep in attributes, lists, dictionaries and buffers, but for their parameters."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _OWN_FIELDS and "hooks" not in name:
                yield from leaves(value, (path, name))


def kept_units(interface: Interface) -> list[Labelled]:
    """Tensors that modules keep and that hold units."""
    tracer = interface.tracer
    held = [(path, tensor) for path, tensor in kept_tensors(interface.model) if not tracer.is_parameter(tensor)]
    return _labelled(tracer, held)


def _labelled(tracer: Tracer, tensors: Iterable[tuple[Path, torch.Tensor]]) -> list[Labelled]:
    found = [(path, tracer.units(tensor)) for path, tensor in tensors]
    named = [(path, labels) for path, labels in found if all(type(part) in (str, int) for part in path)]
    return [Labelled(path, labels) for path, labels in named if labels is not None]


def recognised(interface: Interface, builder: Builder, output: Any) -> dict[tuple[bool, Path], torch.Tensor]:
    """Sources of the last call that are states, with labels of their elements."""
    tracer = interface.tracer
    returned = _labelled(tracer, leaves(output))
    kept = {labelled.path: labelled.labels for labelled in kept_units(interface)}
    judge = _Judge(tracer, builder)
    found: dict[tuple[bool, Path], torch.Tensor] = {}
    # What is made of other states is known once these are.
    for way in (judge.state, judge.projection):
        for source in interface.sources:
            if (source.held, source.path) in found:
                continue
            if source.held:
                back = [kept[source.path]] if source.path in kept else []
            else:
                back = [labels for _, labels in returned]
            labels = way(source, [one for one in back if one.shape == source.shape] or back)
            if labels is None:
                continue
            found[source.held, source.path] = torch.from_numpy(labels).view(source.shape)
            judge.know(labels)
            taken = [k for k, one in enumerate(returned) if judge.same(one.labels, labels, source.shape)]
            if taken and not source.held:
                returned.pop(taken[0])
    return found


class _Judge:
    """Tells states from other tensors that a model is given."""

    def __init__(self, tracer: Tracer, builder: Builder) -> None:
        self._tracer, self._builder = tracer, builder
        self._recording = tracer.recording
        self._roots = tracer.recording.couplings.roots
        self._states: set[int] = set()
        self._own: dict[str, set[int]] = {}
        self._reads: dict[str, set[int]] = {}
        for (name, axis), roles in self._recording.roles.items():
            classes = self._classes(self._recording.axes[name, axis])
            for role, table in (("own", self._own), ("reads", self._reads)):
                if role in roles:
                    table.setdefault(name, set()).update(classes)

    def state(self, source: Source, back: Sequence[torch.Tensor]) -> Ids | None:
        """Labels (elements) of a source that is a state, given what comes back and might be it; None otherwise."""
        taken, beside, read = (source.labels(kind) for kind in ("state", "beside", "read"))
        if not ((taken > NONE) | (beside > NONE) | (read > NONE)).all():
            return None
        if (taken > NONE).all():
            carried = any(self._layers(one) & self._layers(taken) for one in back)
            return taken if carried or self._only_own_readers(source, self._classes(taken)) else None
        for one in back:
            if one.shape == source.shape and self._comes_back(source, flat(one)):
                return flat(one)
        met = np.where(beside > NONE, beside, read)
        if (taken == NONE).all() and self._builder.recurrent_layers_of(met):
            return met if self._only_own_readers(source, self._classes(met)) else None
        return None

    def know(self, labels: Ids) -> None:
        """These are units of a state."""
        self._states |= self._classes(labels)

    def projection(self, source: Source, back: Sequence[torch.Tensor]) -> Ids | None:
        """Labels of a source that is a projection of states that are known: they are made with it, and it of them."""
        if not source.read_by or any(found.any() for kind, found in source.met.items() if kind != "read"):
            return None
        if not (source.labels("read") > NONE).all():
            return None
        if not all(self._own.get(name, set()) & self._states for name in source.read_by):
            return None
        for one in back:
            made = self._classes(flat(one))
            makers = [name for name, own in self._own.items() if own & made and name in self._reads]
            if one.shape == source.shape and makers and all(self._reads[name] & self._states for name in makers):
                return flat(one)
        return None

    def same(self, one: torch.Tensor, labels: Ids, shape: torch.Size) -> bool:
        """Whether a returned tensor holds the units of a state at the same places."""
        return one.shape == shape and np.array_equal(self._roots(flat(one)), self._roots(labels))

    def _comes_back(self, source: Source, back: Ids) -> bool:
        """Whether a returned tensor is what one step makes of this source.

        Where a recurrent layer takes the source, or where it is combined with units, they are those that come back.
        Where weights read it only, one of them has a hand in what comes back. A cell written by hand reads something
        else as well, and something else reads the cell: a residual block is no recurrent layer.
        """
        taken, beside = source.labels("state"), source.labels("beside")
        met, roots = self._roots(np.where(taken > NONE, taken, beside)), self._roots(back)
        alone = met == NONE
        same = (met == roots) | source.met_beside(roots, self._roots)
        if (roots == NONE).any() or not same[~alone].all():
            return False
        handed_on = np.zeros(roots.shape, dtype=bool)
        for name in source.read_by:
            handed_on |= (source.read(name) > NONE) & np.isin(roots, list(self._own.get(name, ())))
        if not handed_on[alone].all():
            return False
        # What a module of PyTorch's takes, in the same tensor, is a layer of its own, which may feed the cell.
        by_hand = taken == NONE
        written = set(roots[by_hand].tolist())
        cell = written | self._classes(source.labels("read")[by_hand])
        makers = {name for name, own in self._own.items() if own & written}
        alone = self._made_of(cell)
        fed = any(self._brings(name, alone) for name in makers)
        read = any(reads & written and name not in makers for name, reads in self._reads.items())
        return len(written) > 1 and fed and read

    def _made_of(self, classes: set[int]) -> set[int]:
        """These classes and all that weights make of them alone, through however many layers."""
        found = set(classes)
        made = {root for name, own in self._own.items() if name in self._reads for root in own}
        while True:
            strange = {root for name, own in self._own.items() if self._brings(name, found) for root in own}
            if not (more := made - strange - found):
                return found
            found |= more

    def _brings(self, name: str, known: set[int]) -> bool:
        """Whether a weight reads something else than these classes, or is a table whose rows are looked up."""
        if name in self._reads:
            return not self._reads[name] <= known
        return self._tracer.tensors[name].ndim > 1

    def _only_own_readers(self, source: Source, classes: set[int]) -> bool:
        return all(self._reads[name] & classes for name in source.read_by)

    def _layers(self, labels: torch.Tensor | Ids) -> set[str]:
        return set(self._builder.recurrent_layers_of(flat(labels) if isinstance(labels, torch.Tensor) else labels))

    def _classes(self, labels: Ids) -> set[int]:
        return set(self._roots(labels).tolist()) - {NONE}


def pair(tracer: Tracer, builder: Builder, interface: Interface, output: Any) -> list[int]:
    """Record which state that was given comes back in which tensors; returns the positions of these in the output.

    A state comes back in the tensor of its shape and units. What remains of its elements can come back in tensors of
    other shapes: parts of a packed state, say. Whatever else holds units is none of the state.
    """
    recording = tracer.recording
    roots = recording.couplings.roots
    given = [Labelled(path, labels) for (held, path), labels in interface.states.items() if not held]
    tensors = list(leaves(output))
    open_outputs = {
        position: Labelled(path, labels)
        for position, (path, tensor) in enumerate(tensors)
        if (labels := tracer.units(tensor)) is not None and all(type(part) in (str, int) for part in path)
    }
    carried: list[int] = []
    budgets = []
    for one in given:
        found = next((k for k, back in open_outputs.items() if _equal(roots, one.labels, back.labels)), None)
        if found is None:
            budgets.append((one, one.labels.numel()))
            continue
        recording.states.append((one, open_outputs.pop(found)))
        carried.append(found)
    for one, budget in budgets:
        layers, partner = set(builder.recurrent_layers_of(flat(one.labels))), False
        for k, back in list(open_outputs.items()):
            held = set(builder.recurrent_layers_of(flat(back.labels)))
            if held and held <= layers and back.labels.numel() <= budget:
                budget -= back.labels.numel()
                recording.states.append((None if partner else one, open_outputs.pop(k)))
                carried.append(k)
                partner = True
        if not partner:
            recording.states.append((one, None))
    recording.kept_states = kept_units(interface)
    for source in interface.sources:
        if "state" in source.met:
            recording.outside_states.update(builder.recurrent_layers_of(source.met["state"]))
        if "beside" in source.met and not source.held:
            name = ".".join(map(str, source.path))
            reason = f"its units are combined with an input of the model ({name}), from which nothing takes columns"
            for table in source.besides:
                tracer.pin(torch.from_numpy(table), "input", reason, source.sites["beside"])
    return carried


def _equal(roots: Any, one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.shape == two.shape and np.array_equal(roots(flat(one)), roots(flat(two)))


def flat(labels: torch.Tensor) -> Ids:
    """The labels in one line."""
    return labels.reshape(-1).cpu().numpy()
