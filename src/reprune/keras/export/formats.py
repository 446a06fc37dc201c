"""Write Keras models for the runtimes that devices have; the format follows the file's suffix."""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np

from reprune.core.exporting import (
    CALLS,
    Comparison,
    ExportError,
    ExportReport,
    Selection,
    StatePair,
    beyond_calibration,
    checked_path,
    checked_way,
    chosen_axes,
    compare,
    require_close,
    worst,
)
from reprune.keras.export.carried import carried_states, check_shapes
from reprune.keras.export.chunks import chunks_differ
from reprune.keras.export.job import Axes, Job
from reprune.keras.export.states import LayerStates
from reprune.runtimes import Runner, count_eight_bits, open_file, require

FORMATS = {".tflite": "tflite", ".onnx": "onnx"}
"""The module here that writes files of a suffix."""


def export(
    model: Any,
    example: Any,
    path: str | Path,
    *,
    int8: bool | str = False,
    calibration: Iterable[Any] | None = None,
    opset: int | None = None,
    submodule: str | None = None,
    dynamic: Selection = None,
    fixed: Selection = None,
    streaming: bool = False,
    evaluate: Callable[[Runner], float] | None = None,
) -> ExportReport:
    """Write a model to a file, run the file in its own runtime, and compare the outputs.

    States that the model takes and returns, and those of `stateful=True` layers, are inputs and outputs of the file;
    the report names the pairs.

    Args:
        model: A built `keras.Model`; it is left as it was.
        example: An input as the model takes it: an array, or a list or dict of them.
        path: Where to write; its suffix decides the format: `.tflite` or `.onnx`.
        int8: Also quantise to 8 bits: `"dynamic"` (or True) the weights, `"static"` activations as well, with ranges
            from `calibration`; `"int16x8"` (`.tflite`) keeps activations in 16 bits, for accuracy.
        calibration: For `"static"` and `"int16x8"`: batches as the model takes them.
        opset: `.onnx`: the version of the standard's operators; 18 by default.
        submodule: Write this layer of the model only; a model in itself, by name.
        dynamic: Sizes to leave free, as the report names them (`["time"]`) or by input and axis; None for all.
        fixed: Sizes to fix at the example's, in the same form.
        streaming: Make the states of all recurrent layers inputs and outputs, to run chunk by chunk.
        evaluate: Measures the file: gets a runner (arrays in, arrays out) and returns a number, such as an accuracy.

    Returns:
        What was written and how far it is from the model, in several calls in a row; `print` it. In `.tflite` files the
        batch is that of the example and time is free where the model leaves it free.

    Raises:
        ExportError: When the model cannot be converted, the converter is not installed, or the file does not compute
            what the model does.

    Example:
        >>> print(export(model, np.zeros((1, 300, 1152), "float32"), "small.tflite"))     # doctest: +SKIP
    """
    path = checked_path(path, FORMATS)
    if keras.backend.backend() != "tensorflow":
        raise ExportError(f"Keras runs on {keras.backend.backend()!r}; export needs KERAS_BACKEND=tensorflow.")
    if opset is not None and path.suffix != ".onnx":
        raise ExportError("opset= is for .onnx files.")
    form = importlib.import_module(f"reprune.keras.export.{FORMATS[path.suffix]}")
    way = checked_way(int8, calibration, form.WAYS)
    require(form.NEEDS, f"Exporting Keras models to {path.suffix}")
    if submodule is not None:
        model, example = _part(model, example, submodule)
    path.parent.mkdir(parents=True, exist_ok=True)
    job = _job(model, example, path.suffix, dynamic, fixed, streaming, opset)
    publish = partial(_publish, form=form, way=way, batches=list(calibration or ()), path=path, evaluate=evaluate)
    notes = chunks_differ(job) if streaming else []
    try:
        report = publish(job)
    except ExportError as error:
        settled = job.with_fixed_steps()
        if settled is job or not (dynamic is None or dynamic is True):
            raise
        try:
            report = publish(settled)
        except ExportError:
            raise error from None
        reason = str(error).splitlines()[0][:200]
        notes.append(f"sizes other than the batch are fixed at the example's: with them free, {reason}")
    return replace(report, notes=(*report.notes, *notes))


def _publish(job: Job, form: Any, way: str | None, batches: list[Any], path: Path, evaluate: Any) -> ExportReport:
    with _converting(job, path):
        job = form.settled(job, way)
    with TemporaryDirectory(dir=path.parent) as folder:
        # Written aside: a file that turns out wrong never takes the place of an old one.
        return _write(job, form, way, batches, path, Path(folder) / path.name, evaluate)


def _write(
    job: Job, form: Any, way: str | None, batches: list[Any], path: Path, part: Path, evaluate: Any
) -> ExportReport:
    with _converting(job, path):
        notes = form.write(job, part, None, [])
    outputs = _outputs(job)
    pairs = tuple(StatePair(job.names[i], list(outputs)[k]) for i, k in job.pairs(len(outputs)))
    if path.suffix == ".onnx":
        form.describe(job, part, outputs, pairs)
    runner = open_file(part)
    examples = _examples(job)
    comparisons = [_compare_calls(job, arrays, runner) for arrays in examples]
    for comparison in comparisons:
        require_close(path, comparison)
    quality = {} if evaluate is None else {"float": evaluate(runner)}
    quantised: list[Comparison] = []
    eight_bits = None
    if way is not None:
        calibrated = _calibration(job, batches)
        with _converting(job, path):
            left = form.write(job, part, way, calibrated)
        eight_bits = count_eight_bits(part)
        if path.suffix == ".tflite":
            notes, left = left, form.left_in_float(way, eight_bits)
        if calibrated:
            notes = [*notes, *beyond_calibration(job.names, job.arrays, calibrated)]
        eight_bits = replace(eight_bits, left=tuple(left))
        runner = open_file(part)
        quantised = [_compare_calls(job, arrays, runner) for arrays in examples]
        if evaluate is not None:
            quality["int8"] = evaluate(runner)
    part.replace(path)
    inputs = dict(zip(job.names, job.axes, strict=True))
    compared = tuple(comparisons), tuple(quantised)
    return ExportReport(path, runner.runtime, inputs, outputs, *compared, quality, tuple(notes), pairs, eight_bits)


def _part(model: Any, example: Any, name: str) -> tuple[Any, Any]:
    """A model inside a model, and what it is given when the outer one runs on the example."""
    parts = {layer.name: layer for layer in model.layers if isinstance(layer, keras.Model)}
    if name not in parts:
        known = ", ".join(parts) or "no model inside"
        raise ExportError(f"submodule={name!r}: {model.name} has no such part that is a model itself; it has {known}.")
    seen = []
    part, original = parts[name], parts[name].call

    def call(inputs: Any, **options: Any) -> Any:
        seen.append(inputs)
        return original(inputs, **options)

    states = LayerStates(model, streaming=False)
    rows = keras.tree.flatten(example)[0].shape[0]
    object.__setattr__(part, "call", call)
    try:
        states.run(model, example, states.zeros(rows))
    finally:
        object.__delattr__(part, "call")
    return part, keras.tree.map_structure(np.asarray, seen[0])


def _job(
    model: Any, example: Any, suffix: str, dynamic: Selection, fixed: Selection, streaming: bool, opset: int | None
) -> Job:
    arrays = [np.asarray(leaf) for leaf in keras.tree.flatten(example)]
    check_shapes(model, arrays, "the example")
    states = LayerStates(model, streaming=streaming)
    names = [f"input_{index}" for index in range(len(arrays))]
    axes = _free_axes(model, arrays, free_batch=suffix == ".onnx" and states.batch is None)
    _tell_times_apart(model, example, arrays, axes, states)
    named = dict(zip(names, axes, strict=True))
    free = {(name, axis) for name, sizes in named.items() for axis, size in enumerate(sizes) if isinstance(size, str)}
    wanted, stay = chosen_axes(dynamic, fixed, named)
    if wanted is not None:
        for name, axis in sorted(wanted - free):
            raise ExportError(f"dynamic=: axis {axis} of {name} cannot be free in {suffix} files of this model.")
        free = wanted
    free -= stay
    axes = [
        tuple(size if (name, axis) in free else array.shape[axis] for axis, size in enumerate(sizes))
        for (name, sizes), array in zip(named.items(), arrays, strict=True)
    ]
    batch = axes[0][0]
    return Job(
        model,
        example,
        [*arrays, *states.zeros(arrays[0].shape[0])],
        [*names, *states.names],
        [*axes, *((batch, size) for size in states.sizes)],
        states,
        carried_states(model, example),
        opset,
    )


def _free_axes(model: Any, arrays: Sequence[Any], *, free_batch: bool) -> list[Axes]:
    """Axes of the inputs, by name where free: the batch if wanted, and what the model itself leaves free."""
    try:
        declared = [tuple(tensor.shape) for tensor in keras.tree.flatten(model.inputs)]
    except (AttributeError, ValueError):  # A subclassed model declares nothing.
        declared = []
    if len(declared) != len(arrays):
        declared = [(None, None, *array.shape[2:]) if array.ndim > 1 else (None,) for array in arrays]

    def named(axis: int, size: int | None, array: Any) -> int | str:
        if size is not None or (axis == 0 and not free_batch):
            return int(array.shape[axis])
        return ("batch", "time")[axis] if axis < 2 else f"axis{axis}"

    return [
        tuple(named(axis, size, array) for axis, size in enumerate(shape))
        for shape, array in zip(declared, arrays, strict=True)
    ]


def _tell_times_apart(model: Any, example: Any, arrays: Sequence[Any], axes: list[Axes], states: LayerStates) -> None:
    """Give inputs that may be longer than the others a `time` of their own: sizes of one name are equal to runtimes."""
    timed = [index for index, sizes in enumerate(axes) if "time" in sizes]
    for index in timed if len(timed) > 1 else []:
        longer = list(arrays)
        steps = longer[index].shape[1]
        longer[index] = np.take(longer[index], np.arange(steps + 1) % steps, 1)
        try:
            states.run(model, keras.tree.pack_sequence_as(example, longer), states.zeros(arrays[0].shape[0]))
        except Exception:  # Whatever the model's own code raises.
            continue
        axes[index] = tuple(f"input_{index}_time" if size == "time" else size for size in axes[index])


def _examples(job: Job) -> list[list[Any]]:
    """The inputs in the example's sizes, larger and smaller, as far as the model takes them."""
    found = [list(job.arrays)]
    for longer in (3, -3):
        resized = job.resized(longer)
        if any(one.shape != other.shape for one, other in zip(resized, job.arrays, strict=True)):
            found.append(resized)
    return found


def _outputs(job: Job) -> dict[str, Axes]:
    """Axes of the outputs: a name where a size follows a free one of the inputs."""
    shapes = [np.asarray(output).shape for output in job.call(job.arrays)]
    larger = job.resized(3)
    others = [np.asarray(output).shape for output in job.call(larger)]
    grown = {
        (one, other): name
        for axes, array, resized in zip(job.axes, job.arrays, larger, strict=True)
        for name, one, other in zip(axes, array.shape, resized.shape, strict=True)
        if isinstance(name, str)
    }
    named: list[Axes] = [
        tuple(
            int(one) if one == other else grown.get((one, other), f"axis{axis}")
            for axis, (one, other) in enumerate(zip(shape, wider, strict=True))
        )
        for shape, wider in zip(shapes, others, strict=True)
    ]
    own = len(shapes) - len(job.states.names)
    names = [*(f"output_{index}" for index in range(own)), *(f"{name}_next" for name in job.states.names)]
    return dict(zip(names, named, strict=True))


def _compare_calls(job: Job, arrays: Sequence[Any], runner: Any) -> Comparison:
    """How far a file is from the model in several calls in a row, each of which hands its states to the next."""
    mine, theirs, found = list(arrays), list(arrays), []
    for _ in range(CALLS):
        expected, got = [np.asarray(output) for output in job.call(mine)], runner(*theirs)
        found.append(compare(theirs, expected, got))
        mine, theirs = job.fed_back(mine, expected), job.fed_back(theirs, got)
    return worst(found)


def _calibration(job: Job, batches: Sequence[Any]) -> list[list[Any]]:
    """Inputs of the file for each batch, states running on from the first one's beginning while sizes stay."""
    found: list[list[Any]] = []
    following: list[Any] = []
    places = [place for place, _ in job.pairs(0)]
    for batch in batches:
        arrays = [np.asarray(leaf) for leaf in keras.tree.flatten(batch)]
        check_shapes(job.model, arrays, "a batch of calibration=")
        arrays += job.states.zeros(arrays[0].shape[0])
        for place in places:
            if following and following[place].shape == arrays[place].shape:
                arrays[place] = following[place]
        for _ in range(CALLS if places else 1):
            found.append(arrays)
            if places:
                arrays = following = job.fed_back(arrays, job.call(arrays))
    return found


@contextmanager
def _converting(job: Job, path: Path) -> Iterator[None]:
    """Within this context converters keep their remarks to themselves, and what they raise is an `ExportError`."""
    logging.disable(logging.ERROR)  # tf2onnx logs what it fails at, and goes on.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ExportError:
        raise
    except Exception as error:  # The converters' errors share no base class.
        text = re.sub(r"\x1b\[\d*m", "", str(error))  # Keras writes in bold.
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        # Of an error within the model's own code, what was raised there; of the converter, the operations it names.
        raised = [index for index, line in enumerate(lines) if re.match(r"\w*(Error|Exception): ", line)]
        operations = [line for line in lines if "tf." in line or "op " in line]
        operations = lines[raised[-1] : raised[-1] + 2] if raised else operations
        inner = ", ".join(layer.name for layer in job.model.layers if isinstance(layer, keras.Model))
        way_out = (
            " Put the recurrent part into a model of its own inside this one, and export that: submodule=its name."
        )
        if inner:
            way_out = f" Export the recurrent part alone: submodule= one of {inner}."
        raise ExportError(
            f"{path.suffix} cannot hold {job.model.name}: {' '.join((operations or lines)[:3])[:600]}.{way_out}"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
