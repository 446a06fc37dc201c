"""Statistics of what consumers read, from the inputs of the modules that hold the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from reprune.core.layers import Slot, Structure
from reprune.core.readings import Axis, FeedBack, SplitMoments
from reprune.core.statistics import Moments
from reprune.torch.ragged.base import Observer, RaggedBase
from reprune.torch.ragged.modules import unroll

WIDEST = 8192
"""Features beyond which a consumer's joint covariance is not kept; it is taken to read its layers' responses."""


class ReadingWatcher:
    """Accumulates what arrives at each consumer; consumers that read the very same tensors share their moments."""

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        into: dict[Axis, SplitMoments],
        fed: dict[Axis, FeedBack] | None = None,
    ) -> None:
        slots = {
            slot.tensor: slot
            for slot in structure.slots
            if slot.role == "reads" and slot.axis == 1 and slot.size <= WIDEST
        }
        # A weight that several modules share goes by the name that it has in the first of them.
        first = {id(weight): name for name, weight in model.named_parameters()}
        names = {name: first[id(weight)] for name, weight in model.named_parameters(remove_duplicate=False)}
        self.slots = {name: slots[known] for name, known in names.items() if known in slots}
        self._into = into
        self._fed = fed
        # What every object of moments has seen in this pass, and how much of that each consumer has read.
        self._seen: list[tuple[SplitMoments, list[_Features]]] = []
        self._read: dict[Axis, int] = {}

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.slots

    def read(self, tensor: str, features: torch.Tensor | PackedSequence) -> None:
        """Account for features (… × features) that arrived at a consumer."""
        slot = self.slots.get(tensor)
        if slot is None:
            return
        part, key = _Features(rows(features), slot), (slot.tensor, slot.axis)
        if key not in self._into:
            self._into[key] = self._new(part)
        read = self._read.setdefault(key, 0)
        self._read[key] += 1
        parts = self._seen_by(self._into[key])
        if read < len(parts):
            if parts[read].is_same(part):
                return
            parts = self._separate(key, read)
        self._into[key].update(part.valid())
        parts.append(part)

    def end_pass(self) -> None:
        """Let go of a pass's tensors; who has read less than those it shared with is from here on by itself."""
        for moments, parts in list(self._seen):
            for key in [key for key, held in self._into.items() if held is moments]:
                if self._read.get(key, 0) < len(parts):
                    self._separate(key, self._read.get(key, 0))
        self._seen, self._read = [], {}

    def _seen_by(self, moments: SplitMoments) -> list[_Features]:
        found = next((parts for held, parts in self._seen if held is moments), None)
        if found is None:
            found = []
            self._seen.append((moments, found))
        return found

    def _new(self, part: _Features) -> SplitMoments:
        """Moments for a consumer without any: those of others that have read just this, or its own."""
        for moments, parts in self._seen:
            if len(parts) == 1 and moments.count == len(parts[0].valid()) and parts[0].is_same(part):
                return moments
        return SplitMoments(part.slot.tensor, part.slot.size)

    def _separate(self, key: Axis, read: int) -> list[_Features]:
        """Give a consumer moments of its own: of what it shared with others, less what it has not read in this pass."""
        shared = self._into[key]
        parts, others = self._seen_by(shared), SplitMoments(key[0], shared.size)
        for part in parts[read:]:
            # What was written over since is not known any more, and stays in.
            if not part.changed:
                others.update(part.valid())
        self._into[key] = shared.without(others)
        self._seen.append((self._into[key], parts[:read]))
        return self._seen[-1][1]

    def feed_back(self, tensor: str, first: torch.Tensor, last: torch.Tensor) -> None:
        """Account for a recurrent weight's states before the first and after the last steps (sequences × units)."""
        slot = self.slots.get(tensor)
        if slot is None or self._fed is None:
            return
        key = (slot.tensor, slot.axis)
        if key not in self._fed:
            self._fed[key] = FeedBack(slot.tensor, slot.size)
        last = rows(last)
        # What counts as padding among the responses was not counted there.
        self._fed[key].update(rows(first), last[(last != 0).any(1)])


class _Features:
    """Features that were read at once (n × features)."""

    def __init__(self, data: torch.Tensor, slot: Slot) -> None:
        self.data = data
        self.slot = slot
        self._version = _version(data)

    @property
    def changed(self) -> bool:
        """Whether something was written into the tensor since."""
        return _version(self.data) != self._version

    def is_same(self, later: _Features) -> bool:
        """Whether a consumer that reads now reads the same."""
        one, other = self.data, later.data
        if self.changed or one.shape != other.shape or one.device != other.device:
            return False
        # Comparing costs one pass, the covariance that it may save costs as many as there are features.
        return (one.data_ptr() == other.data_ptr() and one.stride() == other.stride()) or torch.equal(one, other)

    def valid(self) -> torch.Tensor:
        """Rows without padding: exact zeros in all units at once, unless the layer never answers anything else."""
        places = torch.cat([torch.arange(s.start, s.start + s.units * s.each) for s in self.slot.spans])
        answered = (self.data[:, places.to(self.data.device)] != 0).any(1)
        return self.data[answered] if bool(answered.any()) and not bool(answered.all()) else self.data


def _version(data: torch.Tensor) -> int:
    return 0 if data.is_inference() else data._version


@contextmanager
def watch_readings(
    model: nn.Module, structure: Structure, into: dict[Axis, SplitMoments], fed: dict[Axis, FeedBack] | None = None
) -> Iterator[ReadingWatcher]:
    """Within this context, forward passes account for what every consumer reads."""
    watcher = ReadingWatcher(model, structure, into, fed)
    with ExitStack() as stack:
        for path, module in model.named_modules():
            prefix = f"{path}." if path else ""
            if isinstance(module, (nn.LSTM, nn.GRU, nn.RNN, RaggedBase)):
                stack.enter_context(_recurrent(module, prefix, watcher))
            elif isinstance(module, nn.RNNCellBase):
                stack.enter_context(hooked(module, _cell(prefix, watcher)))
            elif isinstance(module, nn.Linear) and f"{prefix}weight" in watcher:
                stack.enter_context(hooked(module, _linear(prefix, watcher)))
        yield watcher
        watcher.end_pass()


def _linear(prefix: str, watcher: ReadingWatcher) -> Callable[..., None]:
    def watch(_: nn.Module, args: Any, output: Any) -> None:
        watcher.read(f"{prefix}weight", args[0])

    return watch


def _cell(prefix: str, watcher: ReadingWatcher) -> Callable[..., None]:
    def watch(_: nn.Module, args: Any, output: Any) -> None:
        watcher.read(f"{prefix}weight_ih", args[0])
        # What the next step will read; the last one is read by nobody but stands for the others.
        watcher.read(f"{prefix}weight_hh", output[0] if isinstance(output, tuple) else output)

    return watch


@contextmanager
def _recurrent(module: nn.LSTM | nn.GRU | nn.RNN | RaggedBase, prefix: str, watcher: ReadingWatcher) -> Iterator[None]:
    def report(suffix: str, read: torch.Tensor, response: torch.Tensor, *ends: torch.Tensor) -> None:
        layer, _, projection = suffix.partition(":")
        if not projection:
            watcher.read(f"{prefix}weight_ih_{layer}", read)
        # The cell's units are read by the projection if there is one; what comes back in is the output.
        inner = module.proj_size != 0 and not projection
        watcher.read(f"{prefix}weight_{'hr' if inner else 'hh'}_{layer}", response)
        if not inner:
            watcher.feed_back(f"{prefix}weight_hh_{layer}", *ends)

    with unrolled(module, report):
        yield


@contextmanager
def unrolled(
    module: nn.LSTM | nn.GRU | nn.RNN | RaggedBase,
    report: Observer,
) -> Iterator[None]:
    """Run the module layer by layer within this context, reporting what each reads and answers."""
    if isinstance(module, RaggedBase):
        with module.observe(report):
            yield
        return
    pieces = unroll(module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        pieces.training = module.training
        return pieces.forward(*args, **kwargs)

    with pieces.observe(report):
        vars(module)["forward"] = forward
        try:
            yield
        finally:
            del vars(module)["forward"]


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    """A forward hook within this context."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def rows(features: torch.Tensor | PackedSequence) -> torch.Tensor:
    """Features as rows (n × features), apart from the graph."""
    data = features.data if isinstance(features, PackedSequence) else features
    return data.detach().reshape(-1, data.shape[-1])


def responses(structure: Structure, readings: dict[Axis, SplitMoments]) -> dict[str, Moments]:
    """Moments of the responses, from the weights through which layers read their own units; no written cells."""
    return {
        name: _responses(structure, readings, name)
        for name, layer in structure.layers.items()
        if layer.cell != "custom"
    }


def _responses(structure: Structure, readings: dict[Axis, SplitMoments], name: str) -> Moments:
    moments = Moments(name, structure.layers[name].units)
    own = {slot.tensor for slot in structure.slots_of(name, "own")}
    path, layer, *projection = name.split(":")
    # A cell's units are read by the projection, if there is one; what is projected comes back in.
    inside = own | {f"{path}.weight_{'hh' if projection else 'hr'}_{layer}"}
    for slot in structure.slots_of(name, "reads"):
        if slot.tensor in inside and (slot.tensor, slot.axis) in readings:
            places = np.concatenate([s.start + np.arange(s.units) for s in slot.spans if s.layer == name])
            state = readings[slot.tensor, slot.axis].merged().state()
            if state["count"]:
                moments.restore(
                    {
                        "count": state["count"],
                        "mean": state["mean"][places],
                        "scatter": state["scatter"][places][:, places],
                    }
                )
            break
    return moments
