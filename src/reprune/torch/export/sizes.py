"""For export: which sizes of the inputs stay free: those that the model itself can vary, and the user wants free."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import combinations, islice
from typing import Any

from torch import nn

from reprune.core.exporting import ExportError, Selection, chosen_axes
from reprune.torch.export.capture import Captured, capture
from reprune.torch.export.example import Axis, Example, shape_of
from reprune.torch.export.states import StateTensor, feed_back

CONSTANT = "the trace unrolls loops over it, and takes len(x) or int() of it for a constant"


class Sizes:
    """The free sizes of an export, and why others are not.

    Args:
        model: The model.
        example: Its inputs.
        operators: See `capture`.
        dynamic: Sizes to leave free, as the user says it; None for all that can be.
        fixed: Sizes to fix.
        states: The states that go from one call to the next: the model must take what it returned.
        weights: Names of the model's recurrent weights.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        *,
        operators: bool,
        dynamic: Selection,
        fixed: Selection,
        states: Sequence[StateTensor] = (),
        weights: Collection[str] = (),
    ) -> None:
        self.model, self.given, self.operators, self._states = model, example, operators, states
        self._weights = weights
        self.dynamic, self.fixed_by_user = dynamic, fixed
        self.notes: list[str] = []
        axes = {(position, axis) for position, t in enumerate(example.tensors) for axis in range(t.dim())}
        self._free: set[Axis] = set() if dynamic is False else axes
        self._wanted = set(self._free)
        self._told: set[Axis] = set()
        self._asked: set[Axis] = set()
        self._chosen = dynamic is False or (dynamic in (None, True) and not fixed)
        self.captured = self._settle()

    def fix(self, axes: Iterable[Axis], reason: str) -> None:
        """Fix some axes after all, and trace again.

        Raises:
            ExportError: When the user wanted them free.
        """
        self._fix(self.captured, set(axes), reason)
        self.captured = self._settle()

    def others(self) -> list[Example]:
        """The example in other sizes: larger, and smaller, as far as the model itself takes them."""
        captured = self.captured
        values = {symbol: captured.value(symbol) for symbol in captured.bases}
        larger = {symbol: size + _more(captured, symbol) for symbol, size in values.items()}
        smaller = {symbol: max(1, size - _more(captured, symbol)) for symbol, size in values.items()}
        given = [tensor.shape for tensor in self.given.tensors]
        found = [captured.resized(sizes) for sizes in (larger, smaller) if sizes != values]
        found = [example for example in found if [tensor.shape for tensor in example.tensors] != given]
        return [example for example in found if self._refuses(example) is None]

    def wrong(self, matches: Callable[[Example], bool]) -> set[Axis]:
        """The axes that a file cannot vary though the trace can: `matches` tells whether it is right on inputs."""
        captured, alone = self.captured, set()
        for symbol, axes in captured.bases.items():
            example = captured.resized({symbol: captured.value(symbol) + _more(captured, symbol)})
            if self._refuses(example) is None and not matches(example):
                alone.update(axes)
        return alone or set(captured.symbols)

    def unrolled(self) -> list[str]:
        """Notes on axes that are fixed although the model takes other sizes of them."""
        fixed = sorted(self._wanted - self._told - set(self.captured.symbols))
        # Inputs that only fit each other have one size and are tried together.
        sizes = dict.fromkeys(self._size(self.given, axis) for axis in fixed)
        tries = [[a] for a in fixed] + [[a for a in self._wanted if self._size(self.given, a) == n] for n in sizes]
        found = set()
        for axes in tries:
            if self._refuses(self.given.resized({axis: self._size(self.given, axis) + 1 for axis in axes})) is None:
                found.update(axes)
        return [self._note(axis, f"{CONSTANT}; the model itself takes others") for axis in fixed if axis in found]

    def _settle(self) -> Captured:
        """Trace with as much free as the tracer and the model can vary."""
        while True:
            example, free = self._without_ones()
            captured = capture(
                self.model,
                example,
                operators=self.operators,
                free=free,
                states=[state.input for state in self._states],
                weights=self._weights,
            )
            frozen = {axis for axis in free if axis not in captured.symbols}
            doubled = {axis for axis in frozen if self._size(self.given, axis) != self._size(example, axis)}
            stuck = self._stuck(captured)
            if doubled:
                # The trace has made a constant of a size that is not the example's.
                self._free -= doubled
            elif stuck is not None:
                self._fix(captured, *stuck)
            elif not self._chosen:
                self._choose(captured)
            else:
                self._require(self._asked - set(captured.symbols), CONSTANT)
                return captured

    def _choose(self, captured: Captured) -> None:
        """Free what the user wants free, and fix what is to be fixed."""
        self._chosen = True
        free, fixed = chosen_axes(self.dynamic, self.fixed_by_user, captured.inputs)
        if free is not None:
            self._asked = self._positions(free)
            self._free = set(self._asked)
        self._free -= self._positions(fixed)
        self._wanted &= self._free

    def _fix(self, captured: Captured, axes: set[Axis], reason: str) -> None:
        self._require(self._asked & axes, reason)
        self._free -= axes
        self._told |= axes
        self.notes += [self._note(axis, reason) for axis in sorted(axes)]

    def _note(self, axis: Axis, reason: str) -> str:
        return f"{self.given.names[axis[0]]}: axis {axis[1]} is fixed at {self._size(self.given, axis)}: {reason}"

    def _require(self, refused: set[Axis], reason: str) -> None:
        if refused:
            names = ", ".join(f"axis {axis} of {self.given.names[position]}" for position, axis in sorted(refused))
            raise ExportError(f"dynamic=: {names} cannot be free: {reason}")

    def _positions(self, chosen: Collection[tuple[str, int]]) -> set[Axis]:
        return {(self.given.names.index(name), axis) for name, axis in chosen}

    @staticmethod
    def _size(example: Example, axis: Axis) -> int:
        return int(example.tensors[axis[0]].shape[axis[1]])

    def _without_ones(self) -> tuple[Example, frozenset[Axis]]:
        """The example with every free size of one doubled that can be, for the tracer takes one for a constant."""
        ones = sorted(axis for axis in self._free if self._size(self.given, axis) == 1)
        for count in range(len(ones), 0, -1):
            # Few axes in practice; a model with many inputs of one row keeps to the first attempts.
            for chosen in islice(combinations(ones, count), 20):
                larger = self.given.resized(dict.fromkeys(chosen, 2))
                if self._refuses(larger) is None:
                    return larger, frozenset(self._free - set(ones) | set(chosen))
        return self.given, frozenset(self._free - set(ones))

    def _refuses(self, example: Example) -> str | None:
        """None if the model takes these inputs, and then the states that it returned, else what it says."""
        try:
            outputs = example.call(self.model)
            again = feed_back(example, self._states, outputs)
            if [tensor.shape for tensor in again.tensors] != [tensor.shape for tensor in example.tensors]:
                return f"with {_shapes(example)} the model returns states of other sizes"
            if self._states:
                again.call(self.model)
        except Exception as error:  # Whatever the model's own code raises for a size that it does not know.
            return f"the model does not run with {_shapes(example)} ({_first_line(error)})"
        return None

    def _stuck(self, captured: Captured) -> tuple[set[Axis], str] | None:
        """The axes of one symbol that the trace leaves free and the model cannot vary, and what it says."""
        larger = {symbol: captured.value(symbol) + _more(captured, symbol) for symbol in captured.bases}
        if self._refuses(captured.resized(larger)) is None:
            return None
        for symbol, axes in captured.bases.items():
            reason = self._refuses(captured.resized({symbol: captured.value(symbol) + _more(captured, symbol)}))
            if reason is not None:
                return set(axes), reason
        return None  # Each runs alone: two inputs that only fit each other.


def _more(captured: Captured, symbol: Any) -> int:
    return 3 if captured.meanings.get(symbol) == "time" else 1


def _shapes(example: Example) -> str:
    return ", ".join(map(shape_of, example.tensors))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
