"""Write Keras models for the runtimes that devices have; the format follows the file's suffix."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np

from reprune.core.exporting import Comparison, ExportError, ExportReport, compare, require_close
from reprune.keras.export.operators import opaque_loops
from reprune.runtimes import Runner, need, open_file

Axes = tuple[int | None, ...]


def export(
    model: Any,
    example: Any,
    path: str | Path,
    *,
    int8: bool = False,
    streaming: bool = False,
    evaluate: Callable[[Runner], float] | None = None,
) -> ExportReport:
    """Write a model to a file, run the file in its own runtime, and compare the outputs.

    Args:
        model: A built `keras.Model`; it is left as it was.
        example: An input as the model takes it: an array, or a list or dict of them.
        path: Where to write; its suffix decides the format: `.tflite` or `.onnx`.
        int8: Also quantise the weights to 8 bits with the runtime's own tool.
        streaming: For PyTorch models only; a Keras model runs chunk by chunk if it takes states and returns them.
        evaluate: Measures the file: gets a runner (arrays in, arrays out) and returns a number, such as an accuracy.

    Returns:
        What was written and how far it is from the model; `print` it. In `.tflite` files the batch is that of the
        example and time is free where the model leaves it free.

    Raises:
        ExportError: When the model cannot be converted, the converter is not installed, or the file does not compute
            what the model does.

    Example:
        >>> print(export(model, np.zeros((1, 300, 1152), "float32"), "small.tflite"))     # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ExportError(f"{path.name}: unknown format {path.suffix!r}; known for Keras are {', '.join(_WRITERS)}.")
    if streaming:
        raise ExportError(
            "streaming=True is for PyTorch models. Build the Keras model with keras.Input for the states, "
            "layer(x, initial_state=[…]) and return_state=True: its file takes them and returns them."
        )
    if keras.backend.backend() != "tensorflow":
        raise ExportError(f"Keras runs on {keras.backend.backend()!r}; export needs KERAS_BACKEND=tensorflow.")
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = [np.asarray(leaf) for leaf in keras.tree.flatten(example)]
    axes = _free_axes(model, arrays, free_batch=path.suffix == ".onnx")
    with TemporaryDirectory(dir=path.parent) as folder:
        # Written aside: a file that turns out wrong never takes the place of an old one.
        part = Path(folder) / path.name
        notes = _WRITERS[path.suffix](model, example, axes, part, False)
        examples = [arrays, _longer(arrays, axes)]
        comparisons, runner = _run_beside(model, example, examples, part)
        for comparison in comparisons:
            require_close(path, comparison)
        quality = {} if evaluate is None else {"float": evaluate(runner)}
        quantised: tuple[Comparison, ...] = ()
        if int8:
            notes += _WRITERS[path.suffix](model, example, axes, part, True)
            quantised, runner = _run_beside(model, example, examples, part)
            if evaluate is not None:
                quality["int8"] = evaluate(runner)
        part.replace(path)
    inputs = {f"input_{k}": _named(free, array) for k, (free, array) in enumerate(zip(axes, arrays, strict=True))}
    shapes = [np.asarray(leaf).shape for leaf in keras.tree.flatten(model(example, training=False))]
    outputs = {f"output_{k}": tuple(shape) for k, shape in enumerate(shapes)}
    return ExportReport(path, runner.runtime, inputs, outputs, comparisons, quantised, quality, tuple(notes))


def _free_axes(model: Any, arrays: Sequence[Any], *, free_batch: bool) -> list[Axes]:
    """Sizes of the inputs, None where free: the batch if wanted, and what the model itself leaves free."""
    try:
        declared = [tuple(tensor.shape) for tensor in keras.tree.flatten(model.inputs)]
    except (AttributeError, ValueError):  # A subclassed model declares nothing.
        declared = []
    if len(declared) != len(arrays):
        declared = [(None, None, *array.shape[2:]) if array.ndim > 1 else (None,) for array in arrays]
    free = []
    for shape, array in zip(declared, arrays, strict=True):
        batch = None if free_batch else array.shape[0]
        free.append((batch, *(None if size is None else array.shape[k + 1] for k, size in enumerate(shape[1:]))))
    return free


def _longer(arrays: Sequence[Any], axes: Sequence[Axes]) -> list[Any]:
    """The same inputs with free axes longer: the batch by one, others by three."""
    longer = []
    for array, free in zip(arrays, axes, strict=True):
        for axis, size in enumerate(free):
            if size is None:
                more = array.shape[axis] + (3 if axis else 1)
                array = np.take(array, np.arange(more) % array.shape[axis], axis)
        longer.append(array)
    return longer


def _named(axes: Axes, array: Any) -> tuple[int | str, ...]:
    names = ("batch", "time")
    return tuple(
        size if size is not None else names[k] if k < len(names) else f"axis{k}" for k, size in enumerate(axes)
    )


def _run_beside(
    model: Any, example: Any, examples: Sequence[Sequence[Any]], path: Path
) -> tuple[tuple[Comparison, ...], Any]:
    runner = open_file(path)
    found = []
    for arrays in examples:
        returned = model(keras.tree.pack_sequence_as(example, arrays), training=False)
        expected = [np.asarray(leaf) for leaf in keras.tree.flatten(returned)]
        found.append(compare(arrays, expected, runner(*arrays)))
    return tuple(found), runner


def _function(model: Any, example: Any, arrays: Sequence[Any], axes: Sequence[Axes]) -> tuple[Any, list[Any]]:
    """The model as a `tf.function` of flat inputs, and their specifications."""
    import tensorflow as tf

    def call(*flat: Any) -> Any:
        return keras.tree.flatten(model(keras.tree.pack_sequence_as(example, list(flat)), training=False))

    specs = [
        tf.TensorSpec(free, array.dtype, name=f"input_{k}")
        for k, (free, array) in enumerate(zip(axes, arrays, strict=True))
    ]
    return tf.function(call), specs


def _write_tflite(model: Any, example: Any, axes: Sequence[Axes], path: Path, int8: bool) -> list[str]:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    arrays = [np.asarray(leaf) for leaf in keras.tree.flatten(example)]
    function, specs = _function(model, example, arrays, axes)
    with _quiet():
        # Weights must be constants: the interpreter has nothing to read a layer's variables from.
        frozen = convert_variables_to_constants_v2(function.get_concrete_function(*specs), lower_control_flow=False)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if int8:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        try:
            content = converter.convert()
        except Exception as error:  # The converter's errors share no base class.
            raise ExportError(f"{model.name} cannot be converted to .tflite: {str(error)[:600]}") from error
    path.write_bytes(content)
    return [f"the batch is fixed at the example's {arrays[0].shape[0]}"]


def _write_onnx(model: Any, example: Any, axes: Sequence[Axes], path: Path, int8: bool) -> list[str]:
    from reprune.runtimes.onnxruntime import quantise, unquantised

    if int8:
        quantise(path).replace(path)
        return unquantised(path)
    with _quiet():
        tool = need("tf2onnx", "tf2onnx", "Exporting Keras models to .onnx")
        onnx = need("onnx", "onnx", "Exporting to .onnx")
        arrays = [np.asarray(leaf) for leaf in keras.tree.flatten(example)]
        function, specs = _function(model, example, arrays, axes)
        with opaque_loops(model) as handlers:
            tool.convert.from_function(
                function, input_signature=specs, opset=18, custom_op_handlers=handlers, output_path=str(path)
            )
    operators = [node.op_type for node in onnx.load(str(path)).graph.node]
    loops = operators.count("Loop") + operators.count("Scan")
    return [f"{loops} recurrent layers became loops: the converter knows no operator for them"] if loops else []


_Writer = Callable[[Any, Any, Sequence[Axes], Path, bool], list[str]]
_WRITERS: Mapping[str, _Writer] = {".tflite": _write_tflite, ".onnx": _write_onnx}


@contextmanager
def _quiet() -> Any:
    """Keep the converters' remarks about their own internals from the user."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
