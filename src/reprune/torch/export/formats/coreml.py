"""PyTorch to `.mlpackage`, the format of Core ML on Apple's devices."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from reprune.core.exporting import ExportError
from reprune.runtimes import need
from reprune.torch.export.capture import quiet
from reprune.torch.export.formats.format import Format, Job
from reprune.torch.tracing.running.copies import duplicate


def write(job: Job, path: Path) -> None:
    """Write a job as `.mlpackage`; it is a folder."""
    coreml = need("coremltools", "Exporting to .mlpackage")
    inputs = job.captured.example
    if inputs.kwargs:
        raise ExportError(
            ".mlpackage takes positional inputs: give the example as a tensor or a tuple, without streaming=True, of a "
            "model that keeps no states."
        )
    specs = [
        coreml.TensorType(name=name, shape=tuple(tensor.shape), dtype=None if tensor.is_floating_point() else int)
        for name, tensor in zip(inputs.names, inputs.tensors, strict=True)
    ]
    trace: Any = torch.jit.trace
    with quiet(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # The converter reads recurrent layers from TorchScript only.
        scripted = trace(duplicate(job.model), inputs.args)
        package = coreml.convert(scripted, inputs=specs, convert_to="mlprogram")
    package.save(str(path))


FORMAT = Format(
    write,
    dynamic=False,
    runs=False,
    needs=("coremltools",),
    note="not compared: Core ML runs on Apple's systems only; all sizes are those of the example",
)
