"""Run `.onnx` files in ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprune.core.exporting import EightBits, ExportError
from reprune.runtimes import need, running

_SCALE = re.compile(r"(_scale|_zero_point)$")


class OnnxRunner:
    """An `.onnx` file in an ONNX Runtime session on the CPU.

    Attributes:
        inputs: Axes of every input, by name; optional ones last.
        required: Types of those that must be given, such as `tensor(float)`, by name.
        outputs: Axes of every output, by name.
    """

    def __init__(self, path: Path, threads: int | None) -> None:
        ort = need("onnxruntime", "Running .onnx files")
        options = ort.SessionOptions()
        options.log_severity_level = 4  # What fails is raised.
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # The runtime's errors share no base class.
            raise ExportError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
        self.runtime = f"onnxruntime {ort.__version__}"
        ports = [*self._session.get_inputs(), *self._session.get_overridable_initializers()]
        self.inputs = {port.name: tuple(port.shape) for port in ports}
        self.required = {port.name: port.type for port in self._session.get_inputs()}
        self.outputs = {port.name: tuple(port.shape) for port in self._session.get_outputs()}

    def __call__(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs for inputs in the file's order; optional ones at the end may be left out."""
        if len(inputs) > len(self.inputs):
            raise ExportError(f"The file takes {len(self.inputs)} inputs {list(self.inputs)}, got {len(inputs)}.")
        feeds = dict(zip(self.inputs, inputs, strict=False))
        with running(self.runtime, inputs):
            return [np.asarray(output) for output in self._session.run(None, feeds)]


def open_file(path: Path, threads: int | None) -> OnnxRunner:
    """Load a file; see `runtimes.open_file`."""
    return OnnxRunner(path, threads)


def count_eight_bits(path: Path) -> EightBits:
    """What an `.onnx` file holds in 8 bits: weights, and activations between two conversions."""
    onnx = need("onnx", "int8=")
    proto = onnx.load(str(path))
    small = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    numbers = (*small, onnx.TensorProto.FLOAT, onnx.TensorProto.INT32)
    weights = [w for graph in _graphs(proto.graph) for w in graph.initializer if w.dims and w.data_type in numbers]
    weights = [weight for weight in weights if not _SCALE.search(weight.name)]
    nodes = [node for graph in _graphs(proto.graph) for node in graph.node]
    makers = ("QuantizeLinear", "DynamicQuantizeLinear")
    eight = [weight for weight in weights if weight.data_type in small]
    activations = sum(node.op_type in makers for node in nodes)
    return EightBits(
        tensors=len(eight) + activations,
        of=len(weights) + sum(len(node.output) for node in nodes if node.op_type not in ("Constant", "Shape")),
        weights=sum(int(np.prod(weight.dims)) for weight in eight),
        of_weights=sum(int(np.prod(weight.dims)) for weight in weights),
    )


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those of its loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
