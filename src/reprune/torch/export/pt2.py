"""PyTorch to `.pt2`, its own exported program: runs without the model's class, in Python or by AOTInductor."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from reprune.core.exporting import ExportError, ExportReport, require_close
from reprune.torch.export.capture import Captured, capture, quiet
from reprune.torch.export.compare import run_beside
from reprune.torch.export.example import Example


def export_pt2(
    model: nn.Module, example: Any, path: Path, *, int8: bool, streaming: bool, evaluate: Any
) -> ExportReport:
    """Write a model as `.pt2` and compare the file with it; see `reprune.torch.export.export`."""
    if int8 or streaming:
        raise ExportError(".pt2 files take neither int8=True nor streaming=True; .onnx files take both.")
    inputs = Example.of(model, example)
    captured = capture(model, inputs)
    with TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        with quiet():
            torch.export.save(captured.program, part)
        other = captured.other_sizes()
        comparisons, runner = run_beside(model, part, [inputs] if other is None else [inputs, other])
        for comparison in comparisons:
            require_close(path, comparison)
        quality = {} if evaluate is None else {"float": evaluate(runner)}
        part.replace(path)
    outputs = {f"output_{k}": tuple(tensor.shape) for k, tensor in enumerate(inputs.call(model))}
    notes = tuple(captured.seen.fixed.values())
    return ExportReport(path, runner.runtime, input_axes(captured), outputs, comparisons, quality=quality, notes=notes)


def input_axes(captured: Captured) -> dict[str, tuple[int | str, ...]]:
    """Axes of every input: a number where the size is fixed, a name where it is free."""
    return {
        name: tuple(
            captured.axis_name(captured.symbols[position, axis]) if (position, axis) in captured.symbols else size
            for axis, size in enumerate(tensor.shape)
        )
        for position, (name, tensor) in enumerate(zip(captured.example.names, captured.example.tensors, strict=True))
    }
