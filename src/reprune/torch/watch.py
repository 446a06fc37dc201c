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
from reprune.torch.ragged import unroll
from reprune.torch.ragged_base import Observer, RaggedBase

WIDEST = 8192
"""Features beyond which a consumer's joint covariance is not kept; it is taken to read its layers' responses."""


class ReadingWatcher:
    """Accumulates what arrives at each consumer; consumers that read the very same tensor share their moments."""

    def __init__(
        self, structure: Structure, into: dict[Axis, SplitMoments], fed: dict[Axis, FeedBack] | None = None
    ) -> None:
        self.slots = {
            slot.tensor: slot
            for slot in structure.slots
            if slot.role == "reads" and slot.axis == 1 and slot.size <= WIDEST
        }
        self._into = into
        self._fed = fed
        self._seen: list[tuple[torch.Tensor, SplitMoments]] = []

    def forget(self) -> None:
        """Let go of a batch's tensors."""
        self._seen = []

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.slots

    def read(self, tensor: str, features: torch.Tensor | PackedSequence) -> None:
        """Account for features (… × features) that arrived at a consumer."""
        slot = self.slots.get(tensor)
        if slot is None:
            return
        data = rows(features)
        key = (slot.tensor, slot.axis)
        mine = self._into.get(key)
        same = next((moments for seen, moments in self._seen if _is_same(seen, data)), None)
        if same is not None and (mine is None or mine is same):
            self._into[key] = same
            return
        if mine is None or any(mine is moments for _, moments in self._seen):
            # New, or sharing with a consumer that read something else this time: from here on by itself.
            mine = self._into[key] = SplitMoments(slot.tensor, slot.size)
        mine.update(_valid(data, slot))
        self._seen.append((data, mine))

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


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.device != other.device:
        return False
    # Comparing costs one pass, the covariance that it may save costs as many as there are features.
    return (one.data_ptr() == other.data_ptr() and one.stride() == other.stride()) or torch.equal(one, other)


def _valid(data: torch.Tensor, slot: Slot) -> torch.Tensor:
    """Rows without padding: exact zeros in all units at once, unless the layer never answers anything else."""
    places = torch.cat([torch.arange(s.start, s.start + s.units * s.each) for s in slot.spans]).to(data.device)
    answered = (data[:, places] != 0).any(1)
    return data[answered] if bool(answered.any()) and not bool(answered.all()) else data


@contextmanager
def watch_readings(
    model: nn.Module, structure: Structure, into: dict[Axis, SplitMoments], fed: dict[Axis, FeedBack] | None = None
) -> Iterator[ReadingWatcher]:
    """Within this context, forward passes account for what every consumer reads."""
    watcher = ReadingWatcher(structure, into, fed)
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


def responses(structure: Structure, readings: dict[Axis, SplitMoments], name: str) -> Moments:
    """Moments of a layer's responses, taken from the weight through which it reads its own units."""
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
