"""Recurrent cells that users declare, because their code cannot be followed: an extension, a fused kernel, NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from reprune.core.errors import UnsupportedModelError
from reprune.torch.tracing.labels import lines
from reprune.torch.tracing.recording import Product, RecurrentLayer, tensors_in
from reprune.torch.tracing.tracer import Tracer


@dataclass(frozen=True)
class DeclaredCell:
    """What `register_cell` was told about a class of modules."""

    units: str
    own: Mapping[str, int]
    reads: Mapping[str, int]
    inputs: Mapping[str, int] = field(default_factory=dict)


_DECLARED: dict[type[nn.Module], DeclaredCell] = {}


def register_cell(
    kind: type[nn.Module],
    *,
    units: str,
    own: Mapping[str, int],
    reads: Mapping[str, int],
    inputs: Mapping[str, int] | None = None,
) -> None:
    """Declare a class of modules as a recurrent cell, so that its code need not be followed.

    Cells made of PyTorch's operations are found without this. Declare those whose code leaves PyTorch. What they
    compute for one unit must depend on this unit's entries of the tensors in `own`, and on other units only through
    `reads`.

    The module is called as `module(x, *state)`. Whatever it returns that ends in an axis of `units` holds its units, in
    the same order; so does whatever it is given beside `x` with such an axis.

    Args:
        kind: The class, subclasses included.
        units: Name of the attribute that holds the number of units. It is set to what is left.
        own: Parameters with the units' own weights, and the axis on which they lie, gate after gate:
            `{"weight_x": 0, "weight_h": 0, "bias": 0}`.
        reads: Parameters that read the state, and the axis: `{"weight_h": 1}`.
        inputs: Parameters that read `x`, and the axis: `{"weight_x": 1}`.

    Example:
        >>> register_cell(FusedCell, units="hidden", own={"w": 0, "u": 0, "b": 0},      # doctest: +SKIP
        ...               reads={"u": 1}, inputs={"w": 1})
    """
    _DECLARED[kind] = DeclaredCell(units, dict(own), dict(reads), dict(inputs or {}))


def declared(module: nn.Module) -> DeclaredCell | None:
    """What was declared about a module's class, or None."""
    return next((_DECLARED[kind] for kind in type(module).__mro__ if kind in _DECLARED), None)


@contextmanager
def traced_cells(model: nn.Module, tracer: Tracer) -> Iterator[None]:
    """While the model runs, label what declared cells are given and return; their own code is not looked at."""
    with ExitStack() as stack:
        for path, module in model.named_modules():
            cell = declared(module)
            if cell is not None:
                stack.enter_context(_traced(module, path, cell, tracer))
        yield


@contextmanager
def _traced(module: nn.Module, path: str, cell: DeclaredCell, tracer: Tracer) -> Iterator[None]:
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with tracer.paused():
            out = inner(*args, **kwargs)
            given, made = list(tensors_in((args, kwargs))), list(tensors_in(out))
            tracer.follow(given, made)
            _label(module, path, cell, tracer, given, made)
        return out

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _label(
    module: nn.Module, path: str, cell: DeclaredCell, tracer: Tracer, given: list[torch.Tensor], out: list[torch.Tensor]
) -> None:
    layer = _layer(module, path, cell, tracer)
    prefix = f"{path}." if path else ""
    for names, role in ((cell.own, "own"), (cell.reads, "reads")):
        for name, axis in names.items():
            tensor = _parameter(tracer, prefix + name, path)
            gates, rest = divmod(tensor.shape[axis], len(layer.labels))
            if rest or (role == "reads" and gates != 1):
                raise UnsupportedModelError(
                    f"{path} ({type(module).__name__}) was declared with {prefix}{name} on axis {axis}, whose length "
                    f"{tensor.shape[axis]} does not fit {len(layer.labels)} units: correct register_cell."
                )
            labels = np.tile(layer.labels, gates)
            tracer.set_axis(prefix + name, axis % tensor.ndim, labels, "own" if role == "own" else "reads")
            if role == "reads":
                tracer.recording.biases.setdefault((prefix + name, axis % tensor.ndim), None)
    x, *states = given
    steps = x.numel() // x.shape[-1]
    for name, axis in cell.inputs.items():
        labels = tracer.axis(prefix + name, axis, "reads")
        tracer.origins.meet("read", tracer.origin(x), labels, prefix + name)
        found = tracer.units(x)
        for line in lines(found, -1) if found is not None else ():
            tracer.couple_lines(labels, line)
    for name in (*cell.inputs, *cell.reads):
        axes = tuple(tracer.axis(prefix + name, axis, "follows") for axis in range(tracer.tensors[prefix + name].ndim))
        tracer.recording.products.append(Product(steps, axes))
    for state in states:
        if state.shape[-1:] == layer.labels.shape:
            _couple_state(tracer, layer, state)
    for tensor in out:
        if tensor.shape[-1:] == layer.labels.shape:
            tracer.memory.set(tensor, torch.from_numpy(layer.emitted).expand(tensor.shape))
    tracer.recording.steps[layer.name] = tracer.recording.steps.get(layer.name, 0) + steps


def _couple_state(tracer: Tracer, layer: RecurrentLayer, state: torch.Tensor) -> None:
    tracer.origins.meet("state", tracer.origin(state), layer.labels)
    found = tracer.units(state)
    for line in lines(found, -1) if found is not None else ():
        tracer.couple_lines(line, layer.labels)


def _layer(module: nn.Module, path: str, cell: DeclaredCell, tracer: Tracer) -> RecurrentLayer:
    name, layers = f"{path}:l0", tracer.recording.layers
    if name not in layers:
        size = getattr(module, cell.units)
        layers[name] = RecurrentLayer(name, "custom", path, tracer.recording.couplings.new(int(size)))
        if getattr(size, "expression", None) is not None:
            tracer.constrain(size.expression, layers[name].labels)
    return layers[name]


def _parameter(tracer: Tracer, name: str, path: str) -> torch.Tensor:
    if name not in tracer.tensors:
        raise UnsupportedModelError(f"{path} was declared with a parameter {name!r}, which it does not have.")
    return tracer.tensors[name]
