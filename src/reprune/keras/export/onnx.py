"""Keras to `.onnx`, by tf2onnx."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reprune.keras.export.job import Job
from reprune.keras.export.operators import opaque_loops
from reprune.runtimes import need
from reprune.runtimes.onnx_int8 import quantise

WAYS = ("dynamic", "static")
NEEDS = ("tf2onnx", "onnx", "onnxruntime")
OPSET = 18


def settled(job: Job, way: str | None) -> Job:
    """The job with the sizes that such a file can leave free: all of them."""
    return job


def write(job: Job, path: Path, way: str | None, calibration: Sequence[Sequence[Any]]) -> list[str]:
    """Write a job as `.onnx`, or quantise the file that is there; returns notes."""
    onnx = need("onnx", "Exporting to .onnx")
    if way is not None:
        part, left = quantise(path, way, calibration)
        part.replace(path)
        return left
    tool = need("tf2onnx", "Exporting Keras models to .onnx")
    function = job.function()
    with opaque_loops(job.model) as handlers:
        tool.convert.from_function(
            function,
            input_signature=function.input_signature,
            opset=job.opset or OPSET,
            custom_op_handlers=handlers,
            output_path=str(path),
        )
    operators = [node.op_type for node in onnx.load(str(path)).graph.node]
    loops = operators.count("Loop") + operators.count("Scan")
    return [f"{loops} recurrent layers became loops: the converter knows no operator for them"] if loops else []


def describe(job: Job, path: Path, outputs: dict[str, Any], pairs: Sequence[Any]) -> None:
    """Name inputs, outputs, axes and states in the file as the report does."""
    onnx = need("onnx", "Exporting to .onnx")
    proto = onnx.load(str(path))
    renamed = {}
    for ports, named in (
        (proto.graph.input, dict(zip(job.names, job.axes, strict=True))),
        (proto.graph.output, outputs),
    ):
        for port, (name, axes) in zip(ports, named.items(), strict=True):
            renamed[port.name], port.name = name, name
            del port.type.tensor_type.shape.dim[:]
            for size in axes:
                dimension = port.type.tensor_type.shape.dim.add()
                setattr(dimension, "dim_value" if isinstance(size, int) else "dim_param", size)
    for node in proto.graph.node:
        _rename(node, renamed)
    if pairs:
        onnx.helper.set_model_props(proto, {"reprune.states": json.dumps([vars(pair) for pair in pairs])})
    onnx.save(proto, str(path))


def _rename(node: Any, renamed: dict[str, str]) -> None:
    for names in (node.input, node.output):
        for index, name in enumerate(names):
            if name in renamed:
                names[index] = renamed[name]
    for attribute in node.attribute:
        for inner in attribute.g.node:
            _rename(inner, renamed)
