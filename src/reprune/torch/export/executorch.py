"""PyTorch to `.pte`, the format of ExecuTorch on phones and microcontrollers, with XNNPACK kernels."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from reprune.core.exporting import ExportError, ExportReport, require_close
from reprune.runtimes import need
from reprune.torch.export.capture import capture, quiet
from reprune.torch.export.compare import run_beside
from reprune.torch.export.example import Example
from reprune.torch.export.pt2 import input_axes


def export_executorch(
    model: nn.Module, example: Any, path: Path, *, int8: bool, streaming: bool, evaluate: Any
) -> ExportReport:
    """Write a model as `.pte` and compare the file with it; see `reprune.torch.export.export`.

    ExecuTorch has no recurrent operator: the steps of the example are unrolled, and all sizes are those of the example.
    """
    if int8 or streaming:
        raise ExportError(".pte files take neither int8=True nor streaming=True; .onnx files take both.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Its dependencies announce changes of their own.
        exir = need("executorch.exir", "executorch", "Exporting to .pte")
        xnnpack = need("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch", "Exporting to .pte")
    inputs = Example.of(model, example)
    captured = capture(model, inputs, dynamic=False)
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="executorch|torch")
        lowered = exir.to_edge_transform_and_lower(captured.program, partitioner=[xnnpack.XnnpackPartitioner()])
        content = lowered.to_executorch().buffer
    with TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        part.write_bytes(content)
        comparisons, runner = run_beside(model, part, [inputs])
        require_close(path, comparisons[0])
        quality = {} if evaluate is None else {"float": evaluate(runner)}
        part.replace(path)
    outputs = {f"output_{k}": tuple(tensor.shape) for k, tensor in enumerate(inputs.call(model))}
    note = "all sizes are those of the example: ExecuTorch has no recurrent operator, its steps are unrolled"
    return ExportReport(
        path, runner.runtime, input_axes(captured), outputs, comparisons, quality=quality, notes=(note,)
    )
