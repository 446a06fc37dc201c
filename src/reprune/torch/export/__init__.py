"""Write PyTorch models for the runtimes that devices have; the format follows the file's suffix."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reprune.core.exporting import ExportError, ExportReport
from reprune.runtimes import Runner
from reprune.torch.tracing.unwrap import unwrap

FORMATS = {
    ".onnx": ("onnx", "export_onnx"),
    ".pt2": ("pt2", "export_pt2"),
    ".pte": ("executorch", "export_executorch"),
    ".tflite": ("litert", "export_litert"),
    ".mlpackage": ("coreml", "export_coreml"),
}
"""Module and function that write files of a suffix."""


def export(
    model: nn.Module,
    example: Any,
    path: str | Path,
    *,
    int8: bool = False,
    streaming: bool = False,
    evaluate: Callable[[Runner], float] | None = None,
) -> ExportReport:
    """Write a model to a file, run the file in its own runtime, and compare the outputs.

    Args:
        model: The model; it is left as it was.
        example: An input as the model takes it: a tensor, a tuple of arguments, or a dict of them.
        path: Where to write; its suffix decides the format: `.onnx`, `.pt2`, `.pte`, `.tflite` or `.mlpackage`.
        int8: Also quantise the weights to 8 bits with the runtime's own tool.
        streaming: `.onnx`: make the states of recurrent modules optional inputs and outputs, to run chunk by chunk.
        evaluate: Measures the file: gets a runner (arrays in, arrays out) and returns a number, such as an accuracy.

    Returns:
        What was written and how far it is from the model, on the example and on other sizes; `print` it.

    Raises:
        ExportError: When the model cannot be written in this format, the converter is not installed, or the file does
            not compute what the model does.

    Example:
        >>> print(export(model, torch.randn(1, 300, 1152), "small.onnx"))     # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ExportError(f"{path.name}: unknown format {path.suffix!r}; known are {', '.join(FORMATS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    model, example = _as_float32(unwrap(model), example)
    module, function = FORMATS[path.suffix]
    write = getattr(importlib.import_module(f"reprune.torch.export.{module}"), function)
    report: ExportReport = write(model, example, path, int8=int8, streaming=streaming, evaluate=evaluate)
    return report


def _as_float32(model: nn.Module, example: Any) -> tuple[nn.Module, Any]:
    """A copy on the CPU, in eval mode, in the precision that runtimes compute in."""
    from torch.utils import _pytree as pytree

    def single(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        leaf = leaf.detach().cpu()
        return leaf.float() if leaf.is_floating_point() else leaf

    return copy.deepcopy(model).cpu().eval().float(), pytree.tree_map(single, example)
