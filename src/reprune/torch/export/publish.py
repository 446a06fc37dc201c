"""The course of every export: states, sizes, the file, its comparison with the model, 8 bits, the report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from reprune.core.exporting import (
    CALLS,
    Comparison,
    ExportError,
    ExportReport,
    Selection,
    beyond_calibration,
    checked_way,
    compare,
    require_close,
    worst,
)
from reprune.runtimes import Runner, open_file, require
from reprune.torch.export.calibration import calibration_inputs, running_on
from reprune.torch.export.carried import carried_states
from reprune.torch.export.errors import converting
from reprune.torch.export.example import Example
from reprune.torch.export.formats.format import Format, Job
from reprune.torch.export.kept import kept_states
from reprune.torch.export.sizes import Sizes
from reprune.torch.export.states import Carrier, StateTensor, feed_back, with_states
from reprune.torch.export.streaming import chunks_differ, module_states
from reprune.torch.tracing.running.copies import duplicate


@dataclass(frozen=True)
class Options:
    """What the caller of `export` asked for; see there."""

    int8: str | None
    calibration: Iterable[Any] | None
    opset: int | None
    dynamic: Selection
    fixed: Selection
    streaming: bool
    optional_states: bool
    evaluate: Callable[[Runner], float] | None

    @classmethod
    def checked(
        cls, path: Path, form: Format, *, int8: bool | str, calibration: Any, opset: int | None, **rest: Any
    ) -> Options:
        """The options, if they go together and with the format, and what it needs is installed.

        Raises:
            ExportError: When they do not, or it is not.
        """
        if opset is not None and path.suffix != ".onnx":
            raise ExportError("opset= is for .onnx files.")
        way = checked_way(int8, calibration, list(form.quantise))
        options = cls(int8=way, calibration=calibration, opset=opset, **rest)
        if not form.dynamic and options.dynamic is not None and not isinstance(options.dynamic, bool):
            raise ExportError(f"dynamic=: all sizes of {path.suffix} files of PyTorch models are those of the example.")
        if not form.runs and options.evaluate is not None:
            raise ExportError(f"evaluate=: no runtime here runs {path.suffix} files.")
        require(form.needs, f"Exporting PyTorch models to {path.suffix}")
        if way is not None:
            require(form.quantise_needs, f"int8= for PyTorch models in {path.suffix} files")
        return options


def publish(model: nn.Module, inputs: Example, path: Path, form: Format, options: Options) -> ExportReport:
    """Write a model, compare the file with it, and report; see `reprune.torch.export.export`.

    Args:
        model: A copy of the user's model.
        inputs: Its example.
        path: Where to write.
        form: The format.
        options: The caller's.
    """
    plain = model
    model, inputs, states, weights, notes = _stateful(model, inputs, options.streaming)
    sizes = Sizes(
        model,
        inputs,
        operators=form.operators,
        dynamic=options.dynamic if form.dynamic else False,
        fixed=options.fixed,
        states=states,
        weights=weights,
    )
    if options.streaming:
        differs = chunks_differ(model, sizes.captured, states)
        notes += [] if differs is None else [differs]
    with TemporaryDirectory(dir=path.parent) as folder:
        # Written aside: a file that turns out wrong never takes the place of an old one.
        part = Path(folder) / path.name
        job, comparisons = _write(model, inputs, states, sizes, part, form, options)
        runner, quality = None, {}
        if form.runs:
            runner = open_file(part)
            quality = {} if options.evaluate is None else {"float": options.evaluate(runner)}
        quantised: list[Comparison] = []
        eight_bits = None
        if options.int8:
            batches = []
            if options.calibration is not None:
                batches = calibration_inputs(plain, model, job.captured, states, options.calibration)
                notes += beyond_calibration(inputs.names, inputs.arrays(), batches)
            with converting(model, path), running_on(model, job.captured.example, batches):
                part, eight_bits = form.quantise[options.int8](job, part, options.int8, batches)
            runner = open_file(part)
            quantised = [compare_calls(model, runner, example, states) for example in (inputs, *sizes.others())]
            if options.evaluate is not None:
                quality["int8"] = options.evaluate(runner)
        if path.is_dir():
            shutil.rmtree(path)  # Of a format that is a folder.
        part.replace(path)
    return ExportReport(
        path,
        runner.runtime if runner is not None else "",
        job.captured.inputs,
        job.captured.outputs(job.outputs),
        tuple(comparisons),
        tuple(quantised),
        quality,
        tuple(dict.fromkeys([*sizes.notes, *sizes.unrolled(), *notes, *([form.note] if form.note else [])])),
        job.pairs(),
        eight_bits,
    )


def _stateful(
    model: nn.Module, inputs: Example, streaming: bool
) -> tuple[nn.Module, Example, list[StateTensor], list[str], list[str]]:
    """The model with all its states as arguments and results, its example and states, its recurrent weights, notes."""
    carried = carried_states(duplicate(model), inputs)
    inputs = carried.example
    kept, notes = kept_states(model, inputs)
    if not streaming:
        notes += [
            f"every call of the file starts anew: the model takes states ({name}) that the example leaves out. Give "
            "them in the example, or pass streaming=True"
            for name in carried.left_out
        ]
    carriers: list[Carrier] = [] if kept is None else [kept]
    if streaming:
        carriers += module_states(model, inputs)
        if kept is not None:
            kept.reset()
    stateful, longer, states = with_states(model, inputs, carriers)
    inside = "" if stateful is model else "model."
    return stateful, longer, [*carried.states, *states], [inside + name for name in carried.weights], notes


def _write(
    model: nn.Module,
    inputs: Example,
    states: Sequence[StateTensor],
    sizes: Sizes,
    path: Path,
    form: Format,
    options: Options,
) -> tuple[Job, list[Comparison]]:
    """Write the file with all sizes free that it computes rightly; what was written, and its comparisons."""
    while True:
        names, leave_out = _output_names(model, inputs, states), form.optional and options.optional_states
        job = Job(model, sizes.captured, states, names, options.opset, leave_out)
        with converting(model, path):
            form.write(job, path)
        if not form.runs:
            return job, []
        runner = open_file(path)
        found = [compare_calls(model, runner, inputs, states)]
        require_close(path, found[0])

        def matches(example: Example, runner: Runner = runner) -> bool:
            try:
                require_close(path, compare_calls(model, runner, example, states))
            except ExportError:
                return False
            return True

        others = sizes.others()
        if all(matches(example) for example in others):
            return job, found + [compare_calls(model, runner, example, states) for example in others]
        sizes.fix(sizes.wrong(matches), "in other sizes the file does not compute what the model does")


def compare_calls(model: nn.Module, runner: Runner, example: Example, states: Sequence[StateTensor]) -> Comparison:
    """How far a file is from the model in several calls in a row, each of which hands its states to the next."""
    mine = theirs = example
    found = []
    for _ in range(CALLS):
        expected = mine.call(model)
        got = runner(*theirs.arrays())
        found.append(compare(theirs.arrays(), [tensor.numpy() for tensor in expected], got))
        mine = feed_back(mine, states, expected)
        theirs = feed_back(theirs, states, [torch.from_numpy(array) for array in got])
    return worst(found)


def _output_names(model: nn.Module, inputs: Example, states: Sequence[StateTensor]) -> list[str]:
    """`output`, or `output_0` and so on, and for states that the model does not return itself those of their inputs."""
    count = len(inputs.call(model))
    own = {state.output: state.input for state in states if state.optional}
    plain = count - len(own)
    names = ["output"] if plain == 1 else [f"output_{index}" for index in range(plain)]
    return [*names, *(_next_name(own[index]) for index in range(plain, count))]


def _next_name(name: str) -> str:
    """`lstm.h_n` for `lstm.h_0`, `memory_next` for `memory`."""
    return (
        name.replace("_0", "_n", 1)
        if ".h_0" in name or ".c_0" in name or name[:3] in ("h_0", "c_0")
        else f"{name}_next"
    )
