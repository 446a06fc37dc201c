"""Write PyTorch models for the runtimes that devices have; the format follows the file's suffix."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from reprune.core.exporting import ExportReport, Selection, checked_path
from reprune.runtimes import Runner
from reprune.torch.export.example import Example, require_part, submodule_example
from reprune.torch.export.formats.format import Format
from reprune.torch.export.publish import Options, publish
from reprune.torch.tracing.running.computed import settle
from reprune.torch.tracing.running.copies import duplicate
from reprune.torch.tracing.running.unwrap import unwrap

FORMATS = {".onnx": "onnx", ".pt2": "pt2", ".pte": "executorch", ".tflite": "litert", ".mlpackage": "coreml"}
"""The module here whose `FORMAT` writes files of a suffix."""


def export(
    model: nn.Module,
    example: Any,
    path: str | Path,
    *,
    int8: bool | str = False,
    calibration: Iterable[Any] | None = None,
    opset: int | None = None,
    submodule: str | None = None,
    dynamic: Selection = None,
    fixed: Selection = None,
    streaming: bool = False,
    optional_states: bool = True,
    evaluate: Callable[[Runner], float] | None = None,
) -> ExportReport:
    """Write a model to a file, run the file in its own runtime, and compare the outputs.

    States are inputs and outputs of the file: those that the model takes and returns, in the width that it has now, and
    those that it keeps in buffers, attributes, lists and dicts. The report and the file's metadata name the pairs.

    Args:
        model: The model; it is left as it was.
        example: An input as the model takes it: a tensor, a tuple of arguments, or a dict of them.
        path: Where to write; its suffix decides the format: `.onnx`, `.pt2`, `.pte`, `.tflite` or `.mlpackage`.
        int8: Also quantise to 8 bits with the runtime's own kernels: `"dynamic"` (or True) quantises weights, and
            activations on the fly; `"static"` quantises both, with ranges from `calibration`; `"int16x8"` (`.tflite`)
            keeps activations in 16 bits.
        calibration: For `"static"` and `"int16x8"`: batches as the model takes them.
        opset: `.onnx`: the version of the standard's operators; 18 by default.
        submodule: Write this part of the model only, such as the recurrent core between operations that a format does
            not know. Its inputs are those that it gets when the model runs on the example.
        dynamic: Sizes to leave free, as the report names them (`["batch"]`) or by input and axis (`{"x": [0]}`);
            True or None for all that the model can vary, False for none.
        fixed: Sizes to fix at the example's, in the same form.
        streaming: Make the states with which recurrent modules and cells start inputs and outputs as well, to run
            chunk by chunk.
        optional_states: `.onnx`: let states that the caller need not know be left out of the first call. False makes
            them inputs like any other, for JavaScript and Java: there ONNX Runtime takes no input that has a default.
        evaluate: Measures the file: gets a runner (arrays in, arrays out) and returns a number, such as an accuracy.

    Returns:
        What was written and how far it is from the model, in several calls in a row, on the example and on other sizes;
        `print` it.

    Raises:
        ExportError: When the model cannot be written in this format, the converter is not installed, or the file does
            not compute what the model does.
        UnsupportedModelError: When the model cannot be copied.

    Example:
        >>> print(export(model, torch.randn(1, 300, 1152), "small.onnx"))     # doctest: +SKIP
    """
    path = checked_path(path, FORMATS)
    form: Format = importlib.import_module(f"reprune.torch.export.formats.{FORMATS[path.suffix]}").FORMAT
    options = Options.checked(
        path, form, int8=int8, calibration=calibration, opset=opset, dynamic=dynamic, fixed=fixed,
        streaming=streaming, optional_states=optional_states, evaluate=evaluate,
    )  # fmt: skip
    plain = unwrap(model, computed=True)
    if submodule is not None:
        require_part(plain, submodule)
    single = _settled(duplicate(plain).cpu().eval().float())

    def given(batch: Any) -> Example:
        inputs = Example.of(single, pytree.tree_map(_as_single, batch))
        return inputs if submodule is None else submodule_example(single, inputs, submodule)

    if options.calibration is not None:
        options = replace(options, calibration=map(given, options.calibration))
    inputs = given(example)
    path.parent.mkdir(parents=True, exist_ok=True)
    return publish(single if submodule is None else single.get_submodule(submodule), inputs, path, form, options)


def _settled(model: nn.Module) -> nn.Module:
    """A copy in which weights that are computed in every pass (fake quantisers, weight norm) are the plain results."""
    for module in list(model.modules()):
        settle(module)
    return model


def _as_single(leaf: Any) -> Any:
    """On the CPU, in the precision that runtimes compute in."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    leaf = leaf.detach().cpu()
    return leaf.float() if leaf.is_floating_point() else leaf
