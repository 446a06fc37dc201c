"""PyTorch to `.mlpackage`, the format of Core ML on Apple's devices."""

from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from reprune.core.exporting import ExportError, ExportReport
from reprune.runtimes import need
from reprune.torch.export.capture import quiet
from reprune.torch.export.example import Example


def export_coreml(
    model: nn.Module, example: Any, path: Path, *, int8: bool, streaming: bool, evaluate: Any
) -> ExportReport:
    """Write a model as `.mlpackage`; see `reprune.torch.export.export`.

    Core ML runs on Apple's systems only, so the package is not compared with the model. All sizes are the example's.
    """
    if int8 or streaming or evaluate is not None:
        raise ExportError(".mlpackage takes neither int8, streaming nor evaluate; .onnx takes all of them.")
    coreml = need("coremltools", "coremltools", "Exporting to .mlpackage")
    inputs = Example.of(model, example)
    if inputs.kwargs:
        raise ExportError(".mlpackage takes positional inputs: give the example as a tensor or a tuple.")
    specs = [
        coreml.TensorType(name=name, shape=tuple(tensor.shape), dtype=None if tensor.is_floating_point() else int)
        for name, tensor in zip(inputs.names, inputs.tensors, strict=True)
    ]
    trace: Any = torch.jit.trace
    try:
        with quiet(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            # The converter reads recurrent layers from TorchScript only.
            scripted = trace(copy.deepcopy(model), inputs.args)
            package = coreml.convert(scripted, inputs=specs, convert_to="mlprogram")
    except Exception as error:  # The converter's errors share no base class.
        raise ExportError(f"{type(model).__name__} cannot be converted to Core ML: {error}") from error
    with TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        package.save(str(part))
        shutil.rmtree(path, ignore_errors=True)
        part.replace(path)
    axes: dict[str, tuple[int | str, ...]] = {
        name: tuple(tensor.shape) for name, tensor in zip(inputs.names, inputs.tensors, strict=True)
    }
    outputs = {f"output_{k}": tuple(tensor.shape) for k, tensor in enumerate(inputs.call(model))}
    return ExportReport(path, "", axes, outputs, (), notes=("not compared: Core ML runs on Apple's systems only",))
