"""Measure models side by side: latency, throughput, peak memory and file size, beside what the arithmetic promises."""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from reprune.core.errors import RepruneError
from reprune.core.exporting import ExportError
from reprune.core.saving.files import replacing
from reprune.runtimes import RUNTIMES, open_file

Subject = Any
"""A `torch.nn.Module`, a `keras.Model`, or the path of an exported file."""
SUFFIXES = {"onnxruntime": ".onnx", "onnxruntime-int8": ".onnx", "litert": ".tflite", "executorch": ".pte"}
"""The file that each runtime but PyTorch itself reads."""


@dataclass(frozen=True)
class Row:
    """One model in one runtime.

    Attributes:
        model: Its name.
        runtime: `torch`, `onnxruntime`, `onnxruntime-int8`, …
        threads: Threads the runtime might use.
        median_ms: Median latency of one call.
        p95_ms: 95th percentile of it.
        per_second: Calls per second at the median.
        peak_mb: Growth of the process's memory while the model is loaded and runs once; NaN where it is not known.
        size_mb: Size of the file; of the parameters for a model that has none.
        macs: Multiply-accumulates of one call; NaN for a file.
    """

    model: str
    runtime: str
    threads: int
    median_ms: float
    p95_ms: float
    per_second: float
    peak_mb: float
    size_mb: float
    macs: float


@dataclass(frozen=True)
class Comparison:
    """All rows of a measurement; `print` it.

    Attributes:
        rows: The first model in every runtime is what the others are compared with.
        shapes: Shapes of the inputs.
        left_out: What could not be measured, and why.
    """

    rows: tuple[Row, ...]
    shapes: tuple[tuple[int, ...], ...]
    left_out: tuple[str, ...] = ()

    def speed_up(self, row: Row) -> float:
        """How many times as fast as the first model a row is, in its runtime with its threads."""
        return self._base(row).median_ms / row.median_ms

    def reduction(self, row: Row) -> float:
        """How many times fewer MACs a row has than the first model."""
        return self._base(row).macs / row.macs

    def _base(self, row: Row) -> Row:
        return next(r for r in self.rows if (r.runtime, r.threads) == (row.runtime, row.threads))

    def to_json(self) -> str:
        """The rows as JSON, with both ratios."""
        rows = [
            {**asdict(row), "speed_up": self.speed_up(row), "mac_reduction": self.reduction(row)} for row in self.rows
        ]
        known = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]
        return json.dumps({"shapes": self.shapes, "rows": known, "left_out": self.left_out}, indent=2) + "\n"

    def __str__(self) -> str:
        table = Table("runtime", "threads", "model", title=f"inputs {' '.join(map(str, self.shapes))}")
        for name in ("median ms", "p95 ms", "per second", "speed-up", "MACs ÷", "peak MB", "file MB"):
            table.add_column(name, justify="right")
        for row in self.rows:
            numbers = (row.median_ms, row.p95_ms, row.per_second, self.speed_up(row), self.reduction(row))
            sizes = (row.peak_mb, row.size_mb)
            cells = ["–" if math.isnan(value) else f"{value:.2f}" for value in (*numbers, *sizes)]
            table.add_row(row.runtime, str(row.threads), row.model, *cells)
        console = Console(width=120, no_color=True)
        with console.capture() as capture:
            console.print(table)
        return "\n".join([capture.get().rstrip(), *(f"left out: {line}" for line in self.left_out)])

    def plot(self, path: Path) -> None:
        """Draw measured speed-up beside MAC reduction; the suffix decides between PNG and SVG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        labels = [f"{row.model}\n{row.runtime}, {row.threads} thr." for row in self.rows]
        places = np.arange(len(labels))
        axes.bar(places - 0.2, [self.reduction(row) for row in self.rows], 0.4, label="MACs, times fewer")
        axes.bar(places + 0.2, [self.speed_up(row) for row in self.rows], 0.4, label="measured, times as fast")
        axes.set_xticks(places, labels, fontsize=7)
        axes.legend()
        with replacing(path) as part:
            figure.savefig(part, format=path.suffix.removeprefix("."))


def bench(
    models: Mapping[str, Subject],
    example: Any,
    *,
    runtimes: Sequence[str] = ("torch", "onnxruntime"),
    threads: Sequence[int] = (1,),
    repeats: int = 20,
) -> Comparison:
    """Measure models on the same input; they take turns, so that whatever else the machine does falls on all alike.

    Args:
        models: The models by name, the one to compare with first: PyTorch or Keras models, or exported files (these run
            in their own runtime).
        example: An input as the models take it; arrays or tensors for files.
        runtimes: For models: `torch`, `onnxruntime`, `onnxruntime-int8`, `litert` or `executorch`. One that cannot run
            a model is left out, and the result says why.
        threads: Numbers of threads to measure with.
        repeats: Timed calls of each model.

    Raises:
        RepruneError: When a runtime is unknown, or nothing can be measured.

    Example:
        >>> print(bench({"dense": model, "pruned": result.model}, torch.randn(1, 300, 1152)))     # doctest: +SKIP
    """
    unknown = [runtime for runtime in runtimes if runtime not in ("torch", *SUFFIXES)]
    if unknown:
        raise RepruneError(f"Unknown runtime {unknown[0]!r}; known are torch, {', '.join(SUFFIXES)}.")
    rows: list[Row] = []
    left_out: list[str] = []
    with TemporaryDirectory() as folder:
        prepared: dict[tuple[str, str], _Prepared] = {}
        for runtime in runtimes:
            for number, (name, model) in enumerate(models.items()):
                try:
                    ready = _prepare(model, example, runtime, Path(folder) / str(number))
                except ExportError as error:
                    left_out.append(f"{name} in {runtime}: {error}")
                else:
                    prepared.setdefault((name, ready.runtime), ready)
        if not prepared:
            raise ExportError("Nothing can be measured.\n" + "\n".join(left_out))
        for count in threads:
            rows += _measure(prepared, count, repeats)
    shapes = tuple(tuple(array.shape) for array in _arrays(example))
    return Comparison(tuple(rows), shapes, tuple(left_out))


@dataclass(frozen=True)
class _Prepared:
    """A model ready to be loaded in a runtime: `load(threads)` returns what is timed."""

    runtime: str
    load: Callable[[int], Callable[[], Any]]
    size: float
    macs: float


def _prepare(model: Subject, example: Any, runtime: str, folder: Path) -> _Prepared:
    if isinstance(model, Path):
        return _file(model, RUNTIMES.get(model.suffix, runtime), _arrays(example), math.nan)
    framework = bench_of(model)
    macs = framework.count_macs(model, example)
    if runtime == "torch":
        return _Prepared(
            "torch", lambda threads: framework.forward(model, example, threads), framework.size(model), macs
        )
    folder.mkdir(exist_ok=True)
    path = folder / f"{runtime}{SUFFIXES[runtime]}"
    framework.export(model, example, path, int8=runtime.endswith("int8"))
    return _file(path, runtime, _arrays(example), macs)


def bench_of(model: Any) -> Any:
    """The module that knows how to run models of this framework."""
    keras = sys.modules.get("keras")
    name = "keras" if keras is not None and isinstance(model, keras.Model) else "torch"
    return importlib.import_module(f"reprune.recipes.bench.{name}")


def _file(path: Path, runtime: str, arrays: list[Any], macs: float) -> _Prepared:
    def load(threads: int) -> Callable[[], Any]:
        runner = open_file(path, threads=threads)
        return lambda: runner(*arrays)

    return _Prepared(runtime, load, path.stat().st_size, macs)


def _measure(prepared: Mapping[tuple[str, str], _Prepared], threads: int, repeats: int) -> Iterator[Row]:
    calls, peaks = {}, {}
    for key, model in prepared.items():
        with _peak_memory() as peak:
            calls[key] = model.load(threads)
            calls[key]()
        peaks[key] = peak
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for turn in range(repeats + 2):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            # The first turns allocate memory and choose kernels.
            if turn >= 2:
                times[key].append(1e3 * (time.perf_counter() - start))
    for key, model in prepared.items():
        name, middle = key[0], median(times[key])
        tail = float(np.percentile(times[key], 95))
        peak_mb = peaks[key][0] / 1e6
        yield Row(name, model.runtime, threads, middle, tail, 1e3 / middle, peak_mb, model.size / 1e6, model.macs)


@contextmanager
def _peak_memory() -> Iterator[list[float]]:
    """Growth of the process's peak resident memory in bytes, as the first entry once the context is left."""
    found = [math.nan]
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(key: str) -> float:
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return 1024 * float(line.split()[1])

    try:
        # What was freed but not given back would be used again without the process growing.
        ctypes.CDLL(None).malloc_trim(0)
        reset.write_text("5")
        before = read("VmRSS")
    except (OSError, AttributeError):  # Linux with glibc only.
        yield found
        return
    yield found
    found[0] = max(0.0, read("VmHWM") - before)


def _arrays(example: Any) -> list[Any]:
    """The arrays in an example, in the order in which files take them."""
    if isinstance(example, Mapping):
        return [array for value in example.values() for array in _arrays(value)]
    if isinstance(example, (tuple, list)):
        return [array for value in example for array in _arrays(value)]
    return (
        [] if example is None else [example.detach().cpu().numpy() if hasattr(example, "cpu") else np.asarray(example)]
    )
