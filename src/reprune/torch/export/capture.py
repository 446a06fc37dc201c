"""For export: trace a model with every size free that can be, and name those sizes."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from reprune.core.exporting import ExportError
from reprune.torch.export.example import Axis, Example, title
from reprune.torch.export.meanings import meanings
from reprune.torch.export.packed import PadInsteadOfPack
from reprune.torch.export.recurrent import Seen, replace_forwards, watch_forwards
from reprune.torch.tracing.running.copies import duplicate


@dataclass(frozen=True)
class Captured:
    """A traced model.

    Attributes:
        program: The trace.
        example: The inputs it was traced with.
        symbols: The size of every free axis of the inputs, as an expression of symbols.
        seen: What the recurrent modules met.
        meanings: `time` or `batch` for those of the symbols of which that is known.
    """

    program: Any
    example: Example
    symbols: dict[Axis, Any]
    seen: Seen
    meanings: Mapping[Any, str] = field(default_factory=dict)

    def axis_name(self, size: Any) -> str:
        """`batch`, `time`, or with the input's name where sizes differ that mean the same; else input and axis.

        Runtimes take sizes of one name for equal.
        """
        sizes = set(self.symbols.values())
        name = self.meanings.get(size)
        if name is not None and sum(self.meanings.get(other) == name for other in sizes) == 1:
            return name
        places = {size: where for where, size in reversed(self.symbols.items())}
        position, axis = places[size]
        alike = [other for other in sizes if self.meanings.get(other) == name and places[other][0] == position]
        number = "" if name is not None and len(alike) == 1 else axis
        return f"{self.example.names[position]}_{name or 'axis'}{number}"

    def means(self, axis: Axis) -> str | None:
        """`time` or `batch` for a free axis of which that is known."""
        return self.meanings.get(self.symbols.get(axis))

    def named(self, axis: Axis) -> int | str:
        """The name of an input's axis, or its size if that is fixed."""
        position, at = axis
        size: int = self.example.tensors[position].shape[at]
        return self.axis_name(self.symbols[axis]) if axis in self.symbols else size

    @property
    def inputs(self) -> dict[str, tuple[int | str, ...]]:
        """Axes of every input: a number where the size is fixed, a name where it is free."""
        tensors = zip(self.example.names, self.example.tensors, strict=True)
        return {
            name: tuple(self.named((position, axis)) for axis in range(tensor.dim()))
            for position, (name, tensor) in enumerate(tensors)
        }

    def outputs(self, names: Collection[str]) -> dict[str, tuple[int | str, ...]]:
        """The same of the outputs; a size that follows from free ones is an expression of their names."""
        nodes = {node.name: node for node in self.program.graph.nodes}
        tensors = [nodes[name].meta["val"] for name in self.program.graph_signature.user_outputs if name in nodes]
        tensors = [value for value in tensors if isinstance(value, torch.Tensor)]
        return {
            name: tuple(self.output_axis(size) for size in tensor.shape)
            for name, tensor in zip(names, tensors, strict=True)
        }

    def output_axis(self, size: Any) -> int | str:
        """A size of an output as the report names it."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if expression.is_number:
            return int(expression)
        if expression in self.symbols.values():
            return self.axis_name(expression)
        from sympy import Symbol  # Takes longer to import than all of reprune: only who exports waits for it.

        names = {symbol: Symbol(self.axis_name(symbol)) for symbol in self.symbols.values() if symbol.is_symbol}
        return str(expression.subs(names))

    @property
    def bases(self) -> dict[Any, list[Axis]]:
        """The axes whose size depends on each symbol."""
        found: dict[Any, list[Axis]] = {}
        for axis, size in self.symbols.items():
            for symbol in size.free_symbols:
                found.setdefault(symbol, []).append(axis)
        return found

    def value(self, symbol: Any) -> int:
        """The size that a symbol had in the trace."""
        from sympy import solve

        axis = min(self.bases[symbol], key=lambda axis: self.symbols[axis] != symbol)
        size = self.example.tensors[axis[0]].shape[axis[1]]
        return int(solve(self.symbols[axis] - size, symbol)[0])

    def resized(self, values: Mapping[Any, int]) -> Example:
        """The example in other sizes: values of symbols; all others as they are."""
        now = {symbol: self.value(symbol) for symbol in self.bases}
        sizes = {axis: int(size.subs({**now, **values})) for axis, size in self.symbols.items()}
        tensors = self.example.tensors
        resized = self.example.resized(sizes)
        if not self.seen.packed:
            return resized
        # Padding only follows the longest sequence: let tensors that look like lengths follow it.
        steps = {
            tensors[position].shape[axis]: sizes[position, axis]
            for position, axis in self.symbols
            if self.means((position, axis)) == "time"
        }
        longest = max(steps, default=0)

        def follow(_: int, tensor: torch.Tensor) -> torch.Tensor:
            if not _counts(tensor, longest):
                return tensor
            return torch.where(tensor == longest, steps[longest], tensor.clamp(max=steps[longest]))

        return resized.with_tensors(follow)


def _counts(tensor: torch.Tensor, longest: int) -> bool:
    integer = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
    return integer and tensor.dim() == 1 and bool(tensor.numel()) and int(tensor.max()) == longest


def capture(
    model: nn.Module,
    example: Example,
    *,
    operators: bool = False,
    free: Collection[Axis] = frozenset(),
    states: Collection[str] = (),
    weights: Collection[str] = (),
) -> Captured:
    """Trace a model.

    Args:
        model: The model; it is left as it was.
        example: Its inputs.
        operators: Put ONNX's operators in the place of recurrent modules, and padding in that of packed sequences.
        free: The axes to leave free; those of size one cannot be, for the tracer takes one for a constant.
        states: Names of the inputs that are states.
        weights: Names of the model's recurrent weights.

    Raises:
        ExportError: When it cannot be traced.
    """
    twin = duplicate(model)
    seen = replace_forwards(twin) if operators else watch_forwards(twin)
    shapes = example.dynamic_shapes(model, free) if free else None
    padding = PadInsteadOfPack() if operators else nullcontext()
    try:
        # What it cannot trace, the tracer prints, operation by operation.
        with quiet(), redirect_stderr(io.StringIO()), torch.no_grad(), padding:
            program = torch.export.export(twin, example.args, example.kwargs, dynamic_shapes=shapes, strict=False)
    except ExportError:
        raise
    except Exception as error:  # Whatever the model's own code or the tracer raises.
        raise ExportError(
            f"{title(model)} cannot be traced by torch.export: {type(error).__name__}: {error}\n"
            "The usual reasons are packed sequences, which only .onnx files take, and Python control flow that "
            "depends on values of tensors. Where only a part cannot be traced, export the recurrent part alone: "
            'submodule="path.of.it".'
        ) from error
    given = _given(program)
    carried = [value.shape for name, value in zip(example.names, given, strict=True) if name in states]
    return Captured(program, example, _symbols(given), seen, meanings(seen.axes, program, weights, carried))


def _given(program: Any) -> list[Tensor]:
    """The inputs in the trace."""
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = [nodes[name].meta.get("val") for name in names if name in nodes]
    return [value for value in values if isinstance(value, Tensor)]


def _symbols(given: Iterable[Tensor]) -> dict[Axis, Any]:
    return {
        (position, axis): size.node.expr
        for position, value in enumerate(given)
        for axis, size in enumerate[Any](value.shape)
        if isinstance(size, torch.SymInt) and not size.node.expr.is_number
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' remarks about their own internals from the user."""
    names = (
        "torch.onnx._internal.exporter._registration",
        "torch.fx.experimental.symbolic_shapes",
        "onnxscript.optimizer._constant_folding",
        "onnx_ir",
    )
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*(was|were) assigned during export")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
