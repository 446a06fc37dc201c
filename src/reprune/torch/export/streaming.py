"""For export: the states of recurrent modules and cells as inputs and outputs, to run a model chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from reprune.core.exporting import CHUNKS_DIFFER, ExportError
from reprune.torch.export.capture import Captured
from reprune.torch.export.example import Axis, Example
from reprune.torch.export.recurrent import recurrent_modules
from reprune.torch.export.states import StateTensor, differ, feed_back, varied


class ModuleStates:
    """The states of one recurrent module or cell that starts from a constant, such as zeros; see `Carrier`.

    A cell in a loop is given the state in the first of its calls and asked for it after the last.
    """

    def __init__(self, path: str, module: Any) -> None:
        self.path, self.pair = (
            path,
            getattr(module, "mode", "LSTM" if isinstance(module, nn.LSTMCell) else "") == "LSTM",
        )
        self.names: list[str] = []
        self.starts: list[Tensor] = []
        self._form: list[list[Tensor]] = []
        self._given: list[Tensor] | None = None
        self._ended: list[list[Tensor]] = []
        self._watching: list[Any] | None = None
        module.register_forward_pre_hook(self._before, with_kwargs=True)
        module.register_forward_hook(self._after)

    def give(self, states: Sequence[Tensor]) -> None:
        """See `Carrier`."""
        self._given, self._ended = list(states), []

    def take(self) -> list[Tensor]:
        """See `Carrier`."""
        return [piece for kind in self._ended for piece in kind]

    def reset(self) -> None:
        """See `Carrier`."""
        self._given, self._ended = None, []

    def first_states(self, model: nn.Module, example: Example) -> list[Any]:
        """What the module is given in its calls during a pass: one entry each, None for no state."""
        self._watching = []
        try:
            example.call(model)
            return self._watching
        finally:
            self._watching = None

    def settle(self, given: Any) -> None:
        """Take over the form of the states that the module returned last, and start from what it was given."""
        self._form = self._ended
        starts = None if given is None else self._pieces(given)
        flat = [piece for kind in self._form for piece in kind]
        self.starts = [torch.zeros_like(piece) for piece in flat]
        if starts is not None and [s.shape for kind in starts for s in kind] == [piece.shape for piece in flat]:
            self.starts = [piece.detach().clone() for kind in starts for piece in kind]
        self.names = []
        for letter, kind in zip("hc", self._form, strict=False):
            name = f"{self.path}.{letter}_0".lstrip(".")
            self.names += [name] if len(kind) == 1 else [f"{name}.{index}" for index in range(len(kind))]

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        data = args[0] if args else kwargs["input"]
        given = args[1] if len(args) > 1 else kwargs.get("hx")
        if self._watching is not None:
            if isinstance(data, PackedSequence):
                raise ExportError(f"streaming=True: {self.path!r} reads packed sequences; give padded batches.")
            self._watching.append(given)
        if self._given is None or self._ended:
            return None
        kinds, rest = [], list(self._given)
        for kind in self._form:
            pieces, rest = rest[: len(kind)], rest[len(kind) :]
            kinds.append(pieces[0] if len(kind) == 1 else tuple(pieces))
        return (data, tuple(kinds) if self.pair else kinds[0]), {}

    def _after(self, module: Any, args: Any, returned: Any) -> None:
        self._ended = self._pieces(returned if isinstance(module, nn.RNNCellBase) else returned[1])

    def _pieces(self, state: Any) -> list[list[Tensor]]:
        kinds = list(state) if self.pair else [state]
        return [[kind] if isinstance(kind, Tensor) else list(kind) for kind in kinds]


def module_states(model: nn.Module, example: Example) -> list[ModuleStates]:
    """The states with which recurrent modules and cells start; modules that are given one by others are left alone.

    Args:
        model: The model; its modules get hooks.
        example: Its inputs.

    Raises:
        ExportError: When no module can carry a state over, or one reads backwards or packed sequences.
    """
    modules = dict(recurrent_modules(model))
    modules |= {path: module for path, module in model.named_modules() if isinstance(module, nn.RNNCellBase)}
    found = []
    for path, module in modules.items():
        states = ModuleStates(path, module)
        here, there = states.first_states(model, example), states.first_states(model, varied(example))
        if not here or not there or not _same(here[0], there[0]):
            continue  # It does not run, or starts from what the inputs say.
        states.settle(here[0])
        found.append(states)
        states.reset()
    backward = [states.path for states in found if getattr(modules[states.path], "bidirectional", False)]
    if not found or backward:
        reason = (
            f"{backward} read backwards as well" if backward else "no recurrent module or cell starts from a constant"
        )
        raise ExportError(f"streaming=True: {reason}, so the model cannot run chunk by chunk.")
    return found


def _same(first: Any, second: Any) -> bool:
    if first is None or second is None:
        return first is second
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and torch.equal(first, second)
    return len(first) == len(second) and all(map(_same, first, second))


def chunks_differ(model: nn.Module, captured: Captured, states: Sequence[StateTensor]) -> str | None:
    """How running in two chunks differs from running at once, in a sentence; None where it does not, or has no time.

    Args:
        model: The model with its states as arguments and results.
        captured: Its trace, which knows where the inputs have their time.
        states: Its states.
    """
    example, carried = captured.example, {state.input for state in states}
    loops = set(captured.seen.loops.values()) - {1}
    axes = [
        (position, axis)
        for position, tensor in enumerate(example.tensors)
        for axis in range(tensor.dim())
        if example.names[position] not in carried
        and (captured.named((position, axis)) in loops or captured.means((position, axis)) == "time")
    ]
    steps = {example.tensors[position].shape[axis] for position, axis in axes}
    if len(steps) != 1:
        return None
    (count,) = steps
    longer = example.resized(dict.fromkeys(axes, 2 * count))
    # Both halves hold other numbers, for a chunk read twice would hide what is carried.
    longer = longer.with_tensors(
        lambda at, t: torch.randn_like(t) if t.is_floating_point() and example.names[at] not in carried else t
    )
    halves = [
        longer.with_tensors(lambda at, t, begin=begin: _part(t, at, axes, begin, count))  # type: ignore[misc]
        for begin in (0, count)
    ]
    whole, first = longer.call(model), halves[0].call(model)
    second = feed_back(halves[1], states, first).call(model)
    for one, begun, ended in zip(whole, first, second, strict=True):
        axis = next((k for k, size in enumerate(one.shape) if size == 2 * ended.shape[k] == 2 * count), None)
        if differ([one], [ended if axis is None else torch.cat([begun, ended], axis)], tolerance=1e-4):
            return CHUNKS_DIFFER
    return None


def _part(tensor: Tensor, position: int, axes: Sequence[Axis], begin: int, count: int) -> Tensor:
    for at, axis in axes:
        if at == position:
            tensor = tensor.narrow(axis, begin, count)
    return tensor
