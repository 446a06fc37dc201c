"""Measuring single layers for `core.budget.latency.LatencyTable`: which sizes, how often, ONNX Runtime's operators."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from reprune.core.budget.latency import LatencyTable, TimedPart, TimeGrid
from reprune.core.decide import free_blocks
from reprune.core.errors import BudgetError, UnsupportedModelError
from reprune.core.exporting import ExportReport
from reprune.core.layers import WIDTHS, Counts, Extent, Structure
from reprune.core.plan import Plan
from reprune.runtimes import need, open_file
from reprune.runtimes.convolution import Geometry
from reprune.runtimes.onnx_int8 import quantise

ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-int8")
_RECURRENT = {kind + cell for kind in ("lstm", "gru", "rnn") for cell in ("", "_cell")}
ROUNDS = 3
"""Passes over all sizes: what disturbs one of them passes."""

Call = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """One layer to be timed: what kind, and the sizes of its input, weights and run."""

    kind: str
    batch: int
    steps: int
    inputs: int
    units: int


Build = Callable[[Sizes], Call]
"""Makes a layer of random weights and returns a call of it on random input."""


@dataclass(frozen=True)
class Model:
    """A model in a runtime: units of its layers, and one call of it."""

    layers: Counts
    call: Call


@dataclass(frozen=True)
class Seen:
    """One layer of a model as a call of the model ran it; see `core.budget.latency.TimedPart`."""

    name: str
    kind: str
    batch: int
    steps: int
    inputs: Extent
    units: Extent
    calls: int = 1


def tabulate(
    seen: Sequence[Seen],
    build: Build,
    dense: Model,
    small: Model,
    *,
    runtime: str,
    threads: int,
    shapes: Sequence[Sequence[int]],
) -> LatencyTable:
    """Measure every kind of layer at a few sizes, and the model itself at two.

    Args:
        seen: The layers whose sizes know units.
        build: Makes a layer in the runtime.
        dense: The dense model in the runtime.
        small: A small form of it.
        runtime: Its name and version.
        threads: Threads it may use.
        shapes: Shapes of the inputs of the models.
    """
    layers = dense.layers
    wanted: dict[tuple[Any, ...], int] = {}
    grids: list[TimeGrid] = []
    parts = []
    for layer in seen:
        axes = _axis(layer.inputs, layers, (4, 2)), _axis(layer.units, layers, (16, 8, 4, 2))
        key = (layer.kind, layer.batch, layer.steps, *axes)
        if key not in wanted:
            wanted[key] = len(grids)
            grids.append(TimeGrid(layer.kind, layer.batch, layer.steps, *axes, ()))
        parts.append(TimedPart(layer.name, wanted[key], layer.inputs, layer.units, layer.calls))
    # What one thread computes, by its own clock: other programs do not lengthen it.
    timed = partial(shortest_ms, clock=time.thread_time if threads == 1 else time.perf_counter)
    points = list(dict.fromkeys(size for grid in grids for size in _points(grid)))
    times = dict.fromkeys(points, np.inf)
    dense_ms = small_ms = np.inf
    for _ in range(ROUNDS):
        dense_ms, small_ms = min(dense_ms, timed(dense.call)), min(small_ms, timed(small.call))
        for point in points:
            times[point] = min(times[point], timed(build(point)))
    grids = [
        replace(
            grid,
            ms=tuple(
                tuple(times[Sizes(grid.kind, grid.batch, grid.steps, read, units)] for units in grid.units)
                for read in grid.inputs
            ),
        )
        for grid in grids
    ]
    table = LatencyTable(
        runtime=runtime,
        threads=threads,
        shapes=tuple(map(tuple, shapes)),
        layers=dict(layers),
        dense_ms=dense_ms,
        small=dict(small.layers),
        small_ms=small_ms,
        parts=tuple(parts),
        grids=tuple(grids),
    )
    return replace(table, rounding=_rounding(table, build, timed))


def _axis(extent: Extent, layers: Counts, divisors: Sequence[int]) -> tuple[int, ...]:
    """Sizes to measure at: the one of a fixed axis, or some from a single unit up to the dense size."""
    whole = extent(layers)
    if not extent.layers:
        return (whole,)
    parts = [*(whole / divisor for divisor in divisors), 3 * whole / 4]
    rounded = {round(part / 16) * 16 if part >= 32 else round(part) for part in parts}
    return tuple(sorted({extent(dict.fromkeys(layers, 1)), whole, *(size for size in rounded if 1 < size < whole)}))


def _points(grid: TimeGrid) -> list[Sizes]:
    return [Sizes(grid.kind, grid.batch, grid.steps, read, units) for read in grid.inputs for units in grid.units]


def shortest_ms(
    call: Call, *, least: int = 3, seconds: float = 0.02, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The shortest of several calls in milliseconds, after a first one: what the machine can do undisturbed.

    Args:
        call: What is timed.
        least: Calls at least.
        seconds: Go on for so long.
        clock: What measures a call.
    """
    call()
    found: list[float] = []
    begin = time.perf_counter()
    while len(found) < least or time.perf_counter() - begin < seconds:
        start = clock()
        call()
        found.append(clock() - start)
    return 1e3 * min(found)


def _rounding(table: LatencyTable, build: Build, timed: Callable[..., float]) -> tuple[tuple[int, float], ...]:
    """How multiples of 1, 2, 4, … compare with the line between two multiples of the largest, at half the units of the
    layer that takes longest."""
    recurrent = [part for part in table.parts if table.grids[part.grid].kind in _RECURRENT]
    # Without recurrent layers it is whatever takes longest.
    able = recurrent or [part for part in table.parts if part.units.layers]
    if not able:
        return ()
    part = max(able, key=lambda part: table.grids[part.grid].ms[-1][-1] * part.calls)
    grid = table.grids[part.grid]
    whole = grid.units[-1]
    largest = next(multiple for multiple in (32, 16, 8, 4, 2, 1) if whole >= 4 * multiple or multiple == 1)
    if largest == 1:
        return ()
    above = max(round(whole / 2 / largest), 2) * largest
    # Few steps tell multiples apart as well as many do.
    one = Sizes(grid.kind, grid.batch, min(grid.steps, 50), grid.inputs[-1], above)
    multiples = [2**power for power in range(largest.bit_length())]
    probes = {size: build(replace(one, units=size)) for size in {above, *(above - multiple for multiple in multiples)}}
    times = dict.fromkeys(probes, np.inf)
    # Round about, so that whatever else the machine does falls on all sizes alike.
    for _ in range(5 * ROUNDS):
        for size, call in probes.items():
            times[size] = min(times[size], timed(call, least=1, seconds=0.002))
    line = np.interp(list(probes), [above - largest, above], [times[above - largest], times[above]])
    expected = dict(zip(probes, line, strict=True))
    return tuple((multiple, times[above - multiple] / float(expected[above - multiple])) for multiple in multiples)


def check_runtime(runtime: str, known: Sequence[str], threads: int) -> None:
    """Raise a `BudgetError` for a runtime that is not known, or threads that are no number of them."""
    if runtime not in known:
        raise BudgetError(f"runtime={runtime!r} cannot be measured: give one of {', '.join(known)}.")
    if not isinstance(threads, int) or threads < 1:
        raise BudgetError(f"threads={threads!r} must be a whole number, at least 1.")


def check_covered(seen: Sequence[Seen], structure: Structure) -> None:
    """Raise an `UnsupportedModelError` that names the recurrent layers that can be pruned but not timed."""
    timed = {name for layer in seen if layer.kind in _RECURRENT for name, _ in layer.units.layers}
    untimed = [name for name in structure.prunable if name not in timed and structure.layers[name].cell not in WIDTHS]
    if untimed:
        raise UnsupportedModelError(
            f"Latency is measured of LSTM, GRU and RNN layers and their cells without projection; {untimed} are "
            "something else. Leave them out with exclude=, or give of='macs' and a number for round_to=."
        )


def small_plan(structure: Structure) -> Plan:
    """A plan that keeps an eighth of all layers that can be pruned."""
    free = {name for together in free_blocks(structure) for group in together for name in group}
    counts = {name: max(units // 8, 1) if name in free else units for name, units in structure.counts().items()}
    return Plan(structure, {name: list(range(units)) for name, units in counts.items()})


def tabulate_onnx(
    seen: Sequence[Seen],
    models: Sequence[tuple[Counts, Callable[[Path], ExportReport]]],
    arrays: Sequence[Any],
    *,
    threads: int,
    int8: bool,
) -> LatencyTable:
    """The same in ONNX Runtime.

    Args:
        seen: The layers whose sizes know units.
        models: The dense and the small model: units of their layers, and what writes their file.
        arrays: Inputs of one call.
        threads: Threads that the runtime may use.
        int8: Whether the files hold 8-bit weights; the layers have them, too.
    """
    with TemporaryDirectory() as folder:
        path, calls = Path(folder) / "model.onnx", []
        for counts, write in models:
            given = first_call(write(path), arrays)
            run = open_file(path, threads=threads)
            calls.append(Model(counts, partial(run, *given)))
        return tabulate(
            seen,
            _onnx_builder(Path(folder), threads, int8=int8),
            *calls,
            runtime=run.runtime + " with 8-bit weights" * int8,
            threads=threads,
            shapes=[array.shape for array in arrays],
        )


def first_call(report: ExportReport, arrays: Sequence[Any]) -> list[Any]:
    """What a file is given at the beginning of a sequence, in its own order, to be timed.

    States that the file takes beside the model's own inputs start from zeros, or are left out where they may be. So do
    inputs as wide as units of the dense model, in the width that the file has: times do not depend on values.

    Args:
        report: What the export of the file found.
        arrays: The model's own inputs as the dense model takes them; they come first in the file.
    """
    own = dict(zip(report.inputs, arrays, strict=False))
    sizes = {size: array.shape[axis] for name, array in own.items() for axis, size in enumerate(report.inputs[name])}
    optional = {pair.input for pair in report.states if pair.start == "nothing"}
    found = []
    for name, axes in report.inputs.items():
        if name in own or name not in optional:
            shape = tuple(sizes[size] if isinstance(size, str) else size for size in axes)
            given = own.get(name, np.zeros(shape, np.float32))
            found.append(given if given.shape == shape else np.zeros(shape, given.dtype))
    return found


def _onnx_builder(folder: Path, threads: int, *, int8: bool) -> Build:
    """Layers as single operators of ONNX Runtime; their files pass through a folder."""
    onnx = need("onnx", "Measuring latency in ONNX Runtime")

    def build(sizes: Sizes) -> Call:
        path = folder / "layer.onnx"
        onnx.save(_operator(onnx, sizes), str(path))
        run = open_file(quantise(path)[0] if int8 else path, threads=threads)
        x = np.random.default_rng(0).standard_normal(_shape(sizes), dtype=np.float32)
        return lambda: run(x)

    return build


def _shape(sizes: Sizes) -> tuple[int, ...]:
    geometry = Geometry.of_kind(sizes.kind)
    if geometry is not None:
        return (sizes.batch, sizes.inputs, *geometry.places)
    linear = sizes.kind == "linear"
    return (sizes.batch, sizes.inputs) if linear else (sizes.steps, sizes.batch, sizes.inputs)


_OPERATORS: Mapping[str, tuple[str, int, dict[str, Any]]] = {
    "lstm": ("LSTM", 4, {}),
    "gru": ("GRU", 3, {"linear_before_reset": 1}),
    "rnn": ("RNN", 1, {}),
}
"""Operator, gates and attributes of every kind of recurrent layer; a cell is a layer of one step."""


def _operator(onnx: Any, sizes: Sizes) -> Any:
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Any:
        return onnx.numpy_helper.from_array(0.1 * rng.standard_normal(shape, dtype=np.float32), name)

    def port(name: str, shape: Sequence[int] | None) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    geometry = Geometry.of_kind(sizes.kind)
    if geometry is not None:
        channels = (sizes.inputs, sizes.units) if geometry.transposed else (sizes.units, sizes.inputs)
        options = {"strides": geometry.stride, "pads": geometry.padding * 2, "dilations": geometry.dilation}
        nodes = [
            onnx.helper.make_node("ConvTranspose" if geometry.transposed else "Conv", ["x", "w"], ["y"], **options)
        ]
        weights = [weight("w", *channels, *geometry.kernel)]
    elif sizes.kind == "linear":
        nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
        weights = [weight("w", sizes.inputs, sizes.units)]
    else:
        operator, gates, more = _OPERATORS[sizes.kind.removesuffix("_cell")]
        nodes = [onnx.helper.make_node(operator, ["x", "w", "r", "b"], ["y"], hidden_size=sizes.units, **more)]
        weights = [
            weight("w", 1, gates * sizes.units, sizes.inputs),
            weight("r", 1, gates * sizes.units, sizes.units),
            weight("b", 1, 2 * gates * sizes.units),
        ]
    graph = onnx.helper.make_graph(nodes, "layer", [port("x", _shape(sizes))], [port("y", None)], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
