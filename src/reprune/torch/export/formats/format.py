"""What a file format has to say for itself, so that one export serves all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from reprune.core.exporting import EightBits, StatePair
from reprune.torch.export.capture import Captured
from reprune.torch.export.states import StateTensor


@dataclass(frozen=True)
class Job:
    """A model ready to be written.

    Attributes:
        model: The model, states among its arguments.
        captured: Its trace.
        states: The states that are carried from call to call.
        outputs: Names of its outputs.
        opset: The operator set of an ONNX file, or None for the usual one.
        leave_out: Whether states may be left out of the first call.
    """

    model: nn.Module
    captured: Captured
    states: Sequence[StateTensor]
    outputs: Sequence[str]
    opset: int | None = None
    leave_out: bool = False

    @property
    def size_sources(self) -> dict[str, tuple[str, int]]:
        """For each free size, an input that always has it and the axis: states that may be left out have not."""
        left_out = {state.input for state in self.states if state.optional}
        return {
            size: (name, axis)
            for name, sizes in self.captured.inputs.items()
            for axis, size in enumerate(sizes)
            if isinstance(size, str) and name not in left_out
        }

    def optional(self, state: StateTensor) -> bool:
        """Whether a state's input may be left out: the inputs beside it tell its sizes."""
        free = [size for size in self.captured.inputs[state.input] if isinstance(size, str)]
        return self.leave_out and state.optional and all(size in self.size_sources for size in free)

    def pairs(self) -> tuple[StatePair, ...]:
        """The states by name."""

        def start(state: StateTensor) -> str:
            if self.optional(state):
                return "nothing"
            return "zeros" if state.start is None else f"the values {state.start.flatten().tolist()}"

        return tuple(StatePair(state.input, self.outputs[state.output], start(state)) for state in self.states)


Quantise = Callable[[Job, Path, str, Sequence[Sequence[Any]]], tuple[Path, EightBits]]
"""Takes a job and its file in single precision, the way that `int8=` names, and calibration inputs; returns the 8-bit
file beside it, and what that really holds in 8 bits."""


@dataclass(frozen=True)
class Format:
    """How files of one suffix are written.

    Attributes:
        write: Writes a job to a path.
        operators: Whether recurrent modules become ONNX's operators.
        dynamic: Whether sizes can stay free.
        optional: Whether inputs can be left out.
        runs: Whether its runtime runs here, so that the file can be compared.
        quantise: How it is quantised, by the names that `int8=` takes.
        needs: Modules that it is written and run with.
        quantise_needs: Further modules that it is quantised with.
        note: What the report says of every such file.
    """

    write: Callable[[Job, Path], None]
    operators: bool = False
    dynamic: bool = True
    optional: bool = False
    runs: bool = True
    quantise: Mapping[str, Quantise] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    quantise_needs: tuple[str, ...] = ()
    note: str = ""
