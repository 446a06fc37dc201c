"""Keras to `.tflite`, the format of LiteRT on Android, iOS and microcontrollers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from reprune.core.exporting import ExportError
from reprune.keras.export.fused import fused_lstms, mended, unrolled
from reprune.keras.export.job import Job
from reprune.keras.export.states import recurrent_layers
from reprune.runtimes.litert import operators

CALIBRATED = ("static", "int16x8")
"""Ways that need ranges of activations. The converter finds none inside loops: these are unrolled."""
WAYS = ("dynamic", *CALIBRATED)
NEEDS = ("ai_edge_litert",)


def write(job: Job, path: Path, way: str | None, calibration: Sequence[Sequence[Any]]) -> list[str]:
    """Write a job as `.tflite`; returns notes.

    Args:
        job: The model, its inputs and states.
        path: Where to write.
        way: How to quantise, or None.
        calibration: Inputs of the file, for `static` and `int16x8`.
    """
    fused = _fused(job, way)
    with ExitStack() as stack:
        if way in CALIBRATED:
            stack.enter_context(unrolled(job.model, fused))
        marked = stack.enter_context(fused_lstms(job.model)) if fused else []
        content = _convert(job, marked, way, calibration)
    path.write_bytes(content)
    return [f"the batch is fixed at the example's {job.batch}", *_remarks(operators(path))]


def settled(job: Job, way: str | None) -> Job:
    """The job with the sizes that such a file can leave free: unrolled layers have a number of steps."""
    if way not in CALIBRATED or all(layer.name in _fused(job, way) for layer in recurrent_layers(job.model)):
        return job
    return replace(job, axes=[array.shape for array in job.arrays])


def _fused(job: Job, way: str | None) -> list[str]:
    """The LSTMs that become one operator; it has no form with 16-bit activations, and takes and returns no states."""
    if way == "int16x8" or job.states.names:
        return []
    with fused_lstms(job.model) as marked:
        job.function().get_concrete_function()
    return marked


def _convert(job: Job, marked: list[str], way: str | None, calibration: Sequence[Sequence[Any]]) -> bytes:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    concrete = job.function().get_concrete_function()
    with TemporaryDirectory() as folder:
        if marked:
            # The mark survives in saved models only: freezing a function renames it.
            module = tf.Module()
            module.function, module.variables_ = job.function(), [weight.value for weight in job.model.weights]
            tf.saved_model.save(module, folder, signatures=module.function)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        else:
            # Weights must be constants: the interpreter has nothing to read a layer's variables from.
            frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
            converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
        sets = tf.lite.OpsSet
        converter.target_spec.supported_ops = {
            "static": [sets.TFLITE_BUILTINS_INT8],
            "int16x8": [sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8],
        }.get(way or "", [sets.TFLITE_BUILTINS])
        if way is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if way in CALIBRATED:
            converter.representative_dataset = lambda: _representative(job, calibration, by_name=bool(marked))
        content: bytes = converter.convert()
    return mended(content, integers=way == "static") if marked else content


def _representative(job: Job, calibration: Sequence[Sequence[Any]], *, by_name: bool) -> Iterator[Any]:
    """Calibration inputs in the file's sizes: rows taken in turn, free sizes as they come."""
    for arrays in calibration:
        count = max(1, arrays[0].shape[0] // job.batch)
        for row in range(count):
            rows = np.arange(row * job.batch, (row + 1) * job.batch)
            fitted = [job.fitted(index, array, rows) for index, array in enumerate(arrays)]
            yield dict(zip(job.names, fitted, strict=True)) if by_name else fitted


def _remarks(found: Counter[str]) -> list[str]:
    fused, loops = found["UNIDIRECTIONAL_SEQUENCE_LSTM"], found["WHILE"]
    notes = []
    if fused:
        notes.append(
            f"{fused} LSTM layer(s) are one operator each, which keeps its state from one call to the next: reset the "
            "interpreter's variables before every sequence (Python reset_all_variables(), C++ ResetVariableTensors(), "
            "Kotlin resetVariableTensors())"
        )
    if loops:
        notes.append(f"{loops} recurrent layer(s) are loops (WHILE): LiteRT has an operator for plain LSTMs only")
    if not fused and not loops:
        notes.append("recurrent layers are unrolled: their number of steps is fixed")
    return notes


def left_in_float(way: str, eight_bits: Any) -> list[str]:
    """Why a quantised file holds no 8-bit weights, if it does not."""
    if eight_bits.weights:
        return []
    if way == "dynamic":
        return ['all weights: the converter quantises those of 1,024 numbers and more; int8="static" quantises all']
    raise ExportError("the converter quantised nothing")
