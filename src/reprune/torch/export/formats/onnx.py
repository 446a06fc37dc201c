"""PyTorch to `.onnx`: recurrent modules become ONNX's LSTM, GRU and RNN operators; batch and time stay free."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from reprune.core.exporting import EightBits, ExportError
from reprune.runtimes import count_eight_bits
from reprune.runtimes.onnx_int8 import quantise
from reprune.torch.export.capture import quiet
from reprune.torch.export.formats.format import Format, Job
from reprune.torch.export.recurrent import onnx_translations
from reprune.torch.export.states import StateTensor

OPSET = 18
Axis = tuple[str, int]


def write(job: Job, path: Path) -> None:
    """Write a job as `.onnx`."""
    captured, opset = job.captured, OPSET if job.opset is None else job.opset
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.onnx|onnxscript|torch.export")
        program = torch.onnx.export(
            captured.program,
            dynamo=True,
            opset_version=opset,
            input_names=list(captured.example.names),
            output_names=list(job.outputs),
            custom_translation_table=onnx_translations(),
            verbose=False,
        )
        assert program is not None
        program.save(str(path))
    _finish(job, path, opset)


def _finish(job: Job, path: Path, opset: int) -> None:
    """Name the free axes, make states optional inputs, and say in the metadata which they are."""
    import onnx

    proto = onnx.load(str(path))
    found = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if found != opset:
        raise ExportError(f"opset={opset}: the exporter can only write version {found} of this model.")
    axes: Mapping[str, Any] = {**job.captured.inputs, **job.captured.outputs(job.outputs)}
    for port in [*proto.graph.input, *proto.graph.output]:
        for dimension, size in zip(port.type.tensor_type.shape.dim, axes[port.name], strict=True):
            dimension.Clear()
            if isinstance(size, int):
                dimension.dim_value = size
            else:
                dimension.dim_param = size
    # Shapes in between are the exporter's guesses for the example; runtimes infer their own.
    del proto.graph.value_info[:]
    for state in job.states:
        if job.optional(state):
            _default(proto.graph, state, job.captured.example.tensor(state.input), axes, job.size_sources)
    if job.states:
        pairs = [vars(pair) for pair in job.pairs()]
        onnx.helper.set_model_props(proto, {"reprune.states": json.dumps(pairs)})
    onnx.checker.check_model(proto)
    onnx.save(proto, str(path))


def _default(
    graph: Any, state: StateTensor, like: torch.Tensor, axes: Mapping[str, Any], sources: Mapping[str, Axis]
) -> None:
    """Make a state's input optional: one state for all sequences, spread over the batch of the input beside it."""
    import onnx

    shape, name, make = axes[state.input], state.input, onnx.helper.make_node
    free = [axis for axis, size in enumerate(shape) if isinstance(size, str)]
    start = state.start
    if start is None:
        start = torch.zeros([1 if axis in free else size for axis, size in enumerate(shape)], dtype=like.dtype)
    for axis in free:
        start = start.narrow(axis, 0, 1)
    graph.initializer.append(onnx.numpy_helper.from_array(start.contiguous().numpy(), name))
    if not free:
        return
    sizes, nodes = [f"{name}/size_{axis}" for axis in range(len(shape))], []
    for axis, size in enumerate(shape):
        if axis in free:
            source, at = sources[size]
            nodes += [
                make("Shape", [source], [f"{name}/shape_{axis}"]),
                make("Constant", [], [f"{name}/axis_{axis}"], value_ints=[at]),
                make("Gather", [f"{name}/shape_{axis}", f"{name}/axis_{axis}"], [sizes[axis]], axis=0),
            ]
        else:
            nodes.append(make("Constant", [], [sizes[axis]], value_ints=[size]))
    nodes += [
        make("Concat", sizes, [f"{name}/shape"], axis=0),
        make("Expand", [name, f"{name}/shape"], [f"{name}/all"]),
    ]
    for node in graph.node:
        for index, read in enumerate(node.input):
            if read == name:
                node.input[index] = f"{name}/all"
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *old])


def _quantise(job: Job, path: Path, way: str, batches: Sequence[Sequence[Any]]) -> tuple[Path, EightBits]:
    target, left = quantise(path, way, batches)
    return target, replace(count_eight_bits(target), left=tuple(left))


FORMAT = Format(
    write,
    operators=True,
    optional=True,
    quantise={"dynamic": _quantise, "static": _quantise},
    needs=("onnx", "onnxscript", "onnxruntime"),
)
