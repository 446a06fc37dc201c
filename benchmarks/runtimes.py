"""Dense and pruned models in the runtimes of devices: latency, file size, difference and 8-bit tensors, in one table.

    python benchmarks/runtimes.py                          # 128 units, some minutes
    python benchmarks/runtimes.py --units 256 --only gru   # one kind
    python benchmarks/runtimes.py --quick                  # 32 units, short sequences

Half of all units are removed, which leaves between a quarter and a third of the multiply-accumulates. A model runs
frame by frame, its states handed on, and over a whole sequence; dense and pruned take turns, on one thread. Weights are
random: times do not depend on them, differences do. Where a file unrolls its steps, the sequence is as many calls of
one frame (marked f). The last lines say which rows meet the aims: frame by frame a pruned model is at least as fast as
the dense one, and from 128 units on at least 1.5 times over the sequence.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
import torch
from torch import Tensor, nn

import reprune
from reprune.core.exporting import ExportError
from reprune.runtimes import count_eight_bits, open_file

FEATURES = 40
AS_FAST, FASTER = 0.97, 1.5
"""How many times as fast a pruned model is to be frame by frame, and over a sequence."""
Call = Callable[[], object]


class Layers(nn.Module):
    """Recurrent layers and what reads them."""

    def __init__(self, kind: str, units: int, **options: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(FEATURES, units, batch_first=True, **options)
        self.output = nn.Linear(units * (2 if self.rnn.bidirectional else 1), 10)

    def forward(self, frames: Tensor) -> Tensor:
        return self.output(self.rnn(frames)[0])


class CellLoop(nn.Module):
    """A loop over a cell."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.cell, self.output = nn.GRUCell(FEATURES, units), nn.Linear(units, 10)

    def forward(self, frames: Tensor) -> Tensor:
        state = frames.new_zeros(frames.shape[0], self.cell.hidden_size)
        outputs = []
        for frame in frames.unbind(1):
            state = self.cell(frame, state)
            outputs.append(self.output(state))
        return torch.stack(outputs, 1)


def keras_model(build: Callable[[Any], Any], *, stateful: bool = False, steps: int | None = None) -> Any:
    import keras

    inputs = keras.layers.Input(batch_shape=(1 if stateful else None, steps, FEATURES))
    return keras.Sequential([inputs, build(keras.layers), keras.layers.Dense(10)])


@dataclass(frozen=True)
class Subject:
    """A model by name: how to build it, and in which files it runs.

    Attributes:
        build: Takes a number of units and of steps, and makes the model.
        files: Suffix and way of quantising of each file.
        streams: Whether it runs frame by frame.
        whole: Whether its files take whole sequences; else these are calls of one frame after the other.
        streaming: Whether its states must be asked for.
    """

    build: Callable[[int, int | None], Any]
    files: tuple[tuple[str, str | None], ...]
    streams: bool = True
    whole: bool = True
    streaming: bool = True


ONNX = ((".onnx", None), (".onnx", "dynamic"), (".onnx", "static"))
LITERT = ((".tflite", None), (".tflite", "static"))
SUBJECTS = {
    "lstm": Subject(lambda units, _: Layers("LSTM", units), ONNX),
    "bilstm": Subject(lambda units, _: Layers("LSTM", units, bidirectional=True), ONNX, streams=False),
    "gru": Subject(lambda units, _: Layers("GRU", units), ONNX),
    "cell loop": Subject(lambda units, _: CellLoop(units), ONNX, whole=False),
    "keras stateful": Subject(
        lambda units, _: keras_model(lambda of: of.LSTM(units, return_sequences=True, stateful=True), stateful=True),
        (*ONNX, (".tflite", None)),
        streaming=False,
    ),
    "keras stateful, frame": Subject(
        lambda units, _: keras_model(
            lambda of: of.LSTM(units, return_sequences=True, stateful=True), stateful=True, steps=1
        ),
        LITERT,
        whole=False,
        streaming=False,
    ),
    "keras lstm, fused": Subject(
        lambda units, steps: keras_model(lambda of: of.LSTM(units, return_sequences=True), steps=steps),
        LITERT,
        streaming=False,
    ),
    "keras bilstm, fused": Subject(
        lambda units, steps: keras_model(
            lambda of: of.Bidirectional(of.LSTM(units, return_sequences=True)), steps=steps
        ),
        LITERT,
        streams=False,
    ),
    "keras lstm, loop": Subject(
        lambda units, _: keras_model(lambda of: of.RNN(of.LSTMCell(units), return_sequences=True)), ((".tflite", None),)
    ),
    "keras lstm, unrolled": Subject(
        lambda units, steps: keras_model(
            lambda of: of.LSTM(units, return_sequences=True, unroll=True), steps=steps or 1
        ),
        LITERT,
        whole=False,
    ),
    "keras gru, loop": Subject(
        lambda units, _: keras_model(lambda of: of.GRU(units, return_sequences=True)), (LITERT[0],)
    ),
    "keras gru, unrolled": Subject(
        lambda units, steps: keras_model(
            lambda of: of.GRU(units, return_sequences=True, unroll=True), steps=steps or 1
        ),
        LITERT,
        whole=False,
    ),
}


@dataclass
class Row:
    """One model in one file: milliseconds per frame and per sequence, megabytes, difference, 8-bit tensors."""

    name: str
    size: str
    file: str
    frame_ms: float = float("nan")
    whole_ms: float = float("nan")
    megabytes: float = float("nan")
    difference: float = float("nan")
    integers: int = 0
    by_frame: bool = False


class Bench:
    """Measures one kind of model, dense and pruned, in every file."""

    def __init__(self, name: str, options: argparse.Namespace, folder: Path) -> None:
        self.name, self.subject, self.options, self.folder = name, SUBJECTS[name], options, folder
        self.rng = np.random.default_rng(0)

    def rows(self) -> Iterator[Row]:
        forms = [("frame", 1, self.subject.streams), ("whole", self.options.frames, self.subject.whole)]
        files: list[tuple[str | None, str | None]] = list(self.subject.files)
        if not self.name.startswith("keras"):
            files.insert(0, (None, None))
        for suffix, way in files:
            label = "PyTorch" if suffix is None else f"{suffix[1:]} {way or 'float'}"
            rows = {size: Row(self.name, size, label) for size in ("dense", "pruned")}
            for form, steps, wanted in forms:
                if wanted:
                    self._measure(rows, form, steps, suffix, way)
            yield from rows.values()

    def _measure(self, rows: dict[str, Row], form: str, steps: int, suffix: str | None, way: str | None) -> None:
        calls: dict[str, Call] = {}
        for size, model in self._models(form, steps).items():
            x = self.rng.normal(size=(1, steps, FEATURES)).astype("float32")
            if suffix is None:
                calls[size] = partial(_forward, model, torch.from_numpy(x))
                rows[size].megabytes = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
                continue
            try:
                calls[size] = self._file(rows[size], model, x, suffix, way, form)
            except ExportError as error:
                print(f"{self.name}, {size}, {suffix} {way}: {str(error).splitlines()[0]}")
        turns = self.options.repeats * (10 if form == "frame" else 1)
        for size, value in _turns(calls, turns).items():
            setattr(rows[size], f"{form}_ms", value)
        if not self.subject.whole:
            sequences = {size: partial(_repeat, call, self.options.frames) for size, call in calls.items()}
            for size, value in _turns(sequences, self.options.repeats).items():
                rows[size].whole_ms, rows[size].by_frame = value, True

    def _models(self, form: str, steps: int) -> dict[str, Any]:
        torch.manual_seed(0)
        dense = self.subject.build(self.options.units, steps if "fused" in self.name or form == "frame" else None)
        length = 8 if isinstance(dense, nn.Module) else dense.input_shape[1] or 8
        batches = [self.rng.normal(size=(1, length, FEATURES)).astype("float32") for _ in range(2)]
        given = [torch.from_numpy(batch) for batch in batches] if isinstance(dense, nn.Module) else batches
        options: dict[str, Any] = {"method": "magnitude", "uniform": True} if isinstance(dense, nn.Module) else {}
        small = reprune.prune(dense, given, 0.5, **{"method": "magnitude", **options}).model
        return {
            size: model.eval() if isinstance(model, nn.Module) else model
            for size, model in (("dense", dense), ("pruned", small))
        }

    def _file(self, row: Row, model: Any, x: Any, suffix: str, way: str | None, form: str) -> Call:
        torch_model = isinstance(model, nn.Module)
        calibration = [self.rng.normal(size=x.shape).astype("float32") for _ in range(20)]
        path = self.folder / f"{row.name.replace(' ', '_')}-{row.size}-{form}-{way}{suffix}"
        report = reprune.export(
            model,
            torch.from_numpy(x) if torch_model else x,
            path,
            int8=way or False,
            calibration=[torch.from_numpy(c) if torch_model else c for c in calibration] if way == "static" else None,
            streaming=form == "frame" and self.subject.streaming,
        )
        row.megabytes, row.integers = path.stat().st_size / 1e6, count_eight_bits(path).tensors
        row.difference = report.quantised_difference if way else report.difference
        run, arrays = open_file(path, threads=1), [x]
        if report.states:
            sizes = [tuple(1 if isinstance(a, str) else a for a in report.inputs[p.input]) for p in report.states]
            arrays += [np.zeros(size, np.float32) for size in sizes]
        return lambda: run(*arrays)


def _repeat(call: Call, times: int) -> None:
    for _ in range(times):
        call()


def _forward(model: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        model(x)


def _turns(calls: dict[str, Call], turns: int) -> dict[str, float]:
    """Medians in milliseconds of calls that take turns; by the thread's own clock, which other programs leave alone."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 2):
        for name, call in calls.items():
            start = time.thread_time()
            call()
            if turn >= 2:
                times[name].append(1e3 * (time.thread_time() - start))
    return {name: median(entry) for name, entry in times.items()}


def table(rows: list[Row], options: argparse.Namespace) -> str:
    """The rows in Markdown, beside the pruned ones how many times as fast they are, and which of them meet the aims."""
    head = f"| model | | file | ms, a frame | faster | ms, {options.frames} frames | faster | MB | difference |"
    lines = [f"{head} 8-bit tensors |", "|---|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    met: dict[str, list[str]] = {"frame": [], "whole": []}
    missed: dict[str, list[str]] = {"frame": [], "whole": []}
    for row in rows:
        base = next(r for r in rows if (r.name, r.file, r.size) == (row.name, row.file, "dense"))
        cells = []
        for form, aim in (("frame", AS_FAST), ("whole", FASTER)):
            own = getattr(row, f"{form}_ms")
            times = getattr(base, f"{form}_ms") / own
            known = row.size == "pruned" and not np.isnan(times)
            if known:
                (met if times >= aim else missed)[form].append(f"{row.name} in {row.file} ({times:.2f})")
            mark = " f" if form == "whole" and row.by_frame else ""
            cells += [_shown(own, ".3f") + mark, f"{times:.2f}{' ✗' * (times < aim)}" if known else ""]
        cells += [f"{row.megabytes:.3f}", _shown(row.difference, ".1e"), str(row.integers)]
        lines.append(f"| {row.name} | {row.size} | {row.file} | {' | '.join(cells)} |")
    aims = {
        "frame": f"At least as fast frame by frame (from {AS_FAST}, as medians of equals differ by that much)",
        "whole": f"At least {FASTER} times as fast over {options.frames} frames"
        + ", asked of 128 units and more" * (options.units < 128),
    }
    lines.append("")
    for form, text in aims.items():
        found = len(met[form]) + len(missed[form])
        rest = f"; missed by {', '.join(missed[form])}" if missed[form] else ""
        lines.append(f"{text}: {len(met[form])} of {found}{rest}.")
    return "\n".join(lines)


def _shown(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(value, form)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", help=f"some of {', '.join(SUBJECTS)}; separated by semicolons")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.units, options.frames, options.repeats = 32, 10, 3
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        for name in options.only.split(";") if options.only else SUBJECTS:
            for row in Bench(name, options, Path(folder)).rows():
                rows.append(row)
                print(row, flush=True)
    print(f"\n{platform.machine()}, one thread, {options.units} units, medians\n\n{table(rows, options)}")


if __name__ == "__main__":
    main()
