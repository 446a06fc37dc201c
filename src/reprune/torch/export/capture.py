"""For export: trace a model with every size free that can be, and name those sizes."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import torch
from torch import nn

from reprune.core.exporting import ExportError
from reprune.torch.export.example import Axis, Example
from reprune.torch.export.packed import PadInsteadOfPack
from reprune.torch.export.recurrent import Seen, replace_forwards, watch_forwards


@dataclass(frozen=True)
class Captured:
    """A traced model.

    Attributes:
        program: The trace.
        example: The inputs it was traced with.
        symbols: The symbol of every free size of the inputs.
        seen: What the recurrent modules met.
    """

    program: Any
    example: Example
    symbols: dict[Axis, str]
    seen: Seen

    def axis_name(self, symbol: str) -> str:
        """`batch`, `time`, or with the input's name where sizes differ that mean the same; else input and axis.

        Runtimes take sizes of one name for equal.
        """
        name = self.seen.axes.get(symbol)
        alike = {other for other in self.symbols.values() if self.seen.axes.get(other) == name}
        if name is not None and len(alike) == 1:
            return name
        position, axis = next(where for where, other in self.symbols.items() if other == symbol)
        return f"{self.example.names[position]}_{name or f'axis{axis}'}"

    def other_sizes(self) -> Example | None:
        """The example in other sizes: free axes one longer, or three if they are time; None when nothing is free."""
        if not self.symbols:
            return None
        tensors = self.example.tensors
        grow = {axis: 3 if self.seen.axes.get(symbol) == "time" else 1 for axis, symbol in self.symbols.items()}
        sizes = {axis: tensors[axis[0]].shape[axis[1]] + more for axis, more in grow.items()}
        larger = self.example.resized(sizes)
        if not self.seen.packed:
            return larger
        # Padding only grows with the longest sequence: let tensors that look like lengths grow with it.
        steps = {tensors[axis[0]].shape[axis[1]] for axis in grow if grow[axis] == 3}
        longest = max(steps, default=0)
        return larger.with_tensors(lambda _, t: t + 3 * (t == longest) if _counts(t, longest) else t)


def _counts(tensor: torch.Tensor, longest: int) -> bool:
    integer = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
    return integer and tensor.dim() == 1 and int(tensor.max()) == longest


def capture(model: nn.Module, example: Example, *, operators: bool = False, dynamic: bool = True) -> Captured:
    """Trace a model.

    Args:
        model: The model; it is left as it was.
        example: Its inputs.
        operators: Put ONNX's operators in the place of recurrent modules, and padding in that of packed sequences.
        dynamic: Leave sizes free.

    Raises:
        ExportError: When it cannot be traced.
    """
    fixed: frozenset[Axis] = frozenset()
    if dynamic:
        example, fixed = _without_ones(model, example)
    twin = copy.deepcopy(model)
    seen = replace_forwards(twin) if operators else watch_forwards(twin)
    shapes = example.dynamic_shapes(model, fixed) if dynamic else None
    padding = PadInsteadOfPack() if operators else nullcontext()
    try:
        with quiet(), torch.no_grad(), padding:
            program = torch.export.export(twin, example.args, example.kwargs, dynamic_shapes=shapes, strict=False)
    except ExportError:
        raise
    except Exception as error:  # Whatever the model's own code or the tracer raises.
        raise ExportError(
            f"{type(model).__name__} cannot be traced by torch.export: {type(error).__name__}: {error}\n"
            "The usual reasons are packed sequences, which only .onnx files take, and Python control flow that "
            "depends on values of tensors."
        ) from error
    return Captured(program, example, _symbols(program), seen)


def _without_ones(model: nn.Module, example: Example) -> tuple[Example, frozenset[Axis]]:
    """The example with every size of one doubled that can be, for the tracer takes one for a constant; and the rest."""
    ones = [
        (position, axis)
        for position, tensor in enumerate(example.tensors)
        for axis, size in enumerate(tensor.shape)
        if size == 1
    ]
    for count in range(len(ones), 0, -1):
        # Few axes in practice; a model with many inputs of one row keeps to the first attempts.
        for chosen in islice(combinations(ones, count), 20):
            larger = example.resized(dict.fromkeys(chosen, 2))
            try:
                larger.call(model)
            except (RuntimeError, ValueError, IndexError):
                continue
            return larger, frozenset(ones) - frozenset(chosen)
    return example, frozenset(ones)


def _symbols(program: Any) -> dict[Axis, str]:
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    tensors = [nodes[name].meta["val"] for name in names if name in nodes and nodes[name].meta.get("val") is not None]
    tensors = [value for value in tensors if isinstance(value, torch.Tensor)]
    return {
        (position, axis): str(size)
        for position, value in enumerate(tensors)
        for axis, size in enumerate(value.shape)
        if isinstance(size, torch.SymInt) and not size.node.expr.is_number
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' remarks about their own internals from the user."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*were assigned during export")
            yield
    finally:
        logger.setLevel(level)
