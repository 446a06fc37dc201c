"""PyTorch to `.tflite`, the format of LiteRT on Android and iOS, by LiteRT's own PyTorch converter."""

from __future__ import annotations

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


def export_litert(
    model: nn.Module, example: Any, path: Path, *, int8: bool, streaming: bool, evaluate: Any
) -> ExportReport:
    """Write a model as `.tflite` and compare the file with it; see `reprune.torch.export.export`.

    The converter knows no recurrent operator: the steps of the example are unrolled, and all sizes are those of the
    example.
    """
    if int8 or streaming:
        raise ExportError(".tflite files from PyTorch take neither int8 nor streaming; .onnx files take both.")
    converter = need("litert_torch", "litert-torch", "Exporting PyTorch models to .tflite")
    inputs = Example.of(model, example)
    captured = capture(model, inputs, dynamic=False)
    with quiet():
        edge = converter.convert(model, inputs.args, sample_kwargs=inputs.kwargs or None)
    with TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        edge.export(str(part))
        comparisons, runner = run_beside(model, part, [inputs])
        require_close(path, comparisons[0])
        quality = {} if evaluate is None else {"float": evaluate(runner)}
        part.replace(path)
    outputs = {f"output_{k}": tuple(tensor.shape) for k, tensor in enumerate(inputs.call(model))}
    note = "all sizes are those of the example: this converter unrolls the steps"
    return ExportReport(
        path, runner.runtime, input_axes(captured), outputs, comparisons, quality=quality, notes=(note,)
    )
