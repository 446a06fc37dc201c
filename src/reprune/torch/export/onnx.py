"""PyTorch to `.onnx`: recurrent modules become ONNX's LSTM, GRU and RNN operators; batch and time stay free."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from reprune.core.exporting import Comparison, ExportReport, require_close
from reprune.runtimes import Runner, need
from reprune.runtimes.onnxruntime import quantise, unquantised
from reprune.torch.export.capture import Captured, capture, quiet
from reprune.torch.export.compare import run_beside
from reprune.torch.export.example import Example
from reprune.torch.export.recurrent import onnx_translations
from reprune.torch.export.streaming import Streaming

Evaluate = Callable[[Runner], float]
OPSET = 18


def export_onnx(
    model: nn.Module,
    example: Any,
    path: Path,
    *,
    int8: bool = False,
    streaming: bool = False,
    evaluate: Evaluate | None = None,
) -> ExportReport:
    """Write a model as `.onnx` and compare the file with it; see `reprune.torch.export.export`."""
    need("onnx", "onnx", "Exporting to .onnx")
    need("onnxscript", "onnxscript", "Exporting to .onnx")
    inputs = Example.of(model, example)
    if streaming:
        model = Streaming(model, inputs)
        inputs = model.example(inputs)
    captured = capture(model, inputs, operators=True)
    with TemporaryDirectory(dir=path.parent) as folder:
        # Written aside: a file that turns out wrong never takes the place of an old one.
        part = Path(folder) / path.name
        _write(captured, model, part)
        expected = [inputs, *([other] if (other := captured.other_sizes()) is not None else [])]
        comparisons, runner = run_beside(model, part, expected)
        for comparison in comparisons:
            require_close(path, comparison)
        quality = {} if evaluate is None else {"float": evaluate(runner)}
        quantised: tuple[Comparison, ...] = ()
        notes: list[str] = []
        if int8:
            part = quantise(part)
            notes = unquantised(part)
            quantised, runner = run_beside(model, part, expected)
            if evaluate is not None:
                quality["int8"] = evaluate(runner)
        part.replace(path)
    return ExportReport(
        path,
        runner.runtime,
        runner.inputs,
        runner.outputs,
        comparisons,
        quantised,
        quality,
        (*captured.seen.fixed.values(), *notes),
    )


def _write(captured: Captured, model: nn.Module, path: Path) -> None:
    outputs = _output_names(captured, model)
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.onnx|onnxscript|torch.export")
        program = torch.onnx.export(
            captured.program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(captured.example.names),
            output_names=outputs,
            custom_translation_table={**onnx_translations(), torch.ops.reprune.to_batch.default: _expand},
            verbose=False,
        )
        assert program is not None
        program.save(str(path))
    _finish(path, captured, model.zeros if isinstance(model, Streaming) else [])


def _expand(state: Any, data: Any, axis: int) -> Any:
    from onnxscript import opset18 as op

    batch: Any = op.Shape(data, start=axis, end=axis + 1)
    one: Any = op.Constant(value_ints=[1])
    shape: Any = op.Concat(batch, one, axis=0)
    return op.Expand(state, shape)


def _output_names(captured: Captured, model: nn.Module) -> list[str]:
    count = len(captured.program.graph_signature.user_outputs)
    finals = [name.replace("_0", "_n", 1) for name in _state_names(model)]
    own = count - len(finals)
    return [*(["output"] if own == 1 else [f"output_{k}" for k in range(own)]), *finals]


def _state_names(model: nn.Module) -> list[str]:
    return model.state_names if isinstance(model, Streaming) else []


def _finish(path: Path, captured: Captured, zeros: Sequence[torch.Tensor]) -> None:
    """Name the free axes, and make states optional inputs that default to zeros."""
    import onnx

    proto = onnx.load(str(path))
    names = {symbol: captured.axis_name(symbol) for symbol in captured.symbols.values()}
    for port in [*proto.graph.input, *proto.graph.output]:
        for axis in port.type.tensor_type.shape.dim:
            if axis.dim_param.isdigit():
                axis.dim_value = int(axis.dim_param)
            elif axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]
    # Shapes in between are the exporter's guesses for the example; runtimes infer their own.
    del proto.graph.value_info[:]
    states = proto.graph.input[len(proto.graph.input) - len(zeros) :]
    for port, zero in zip(states, zeros, strict=True):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(zero.numpy(), port.name))
        port.type.tensor_type.shape.dim[zero.dim() - 2].dim_param = "batch"
    onnx.checker.check_model(proto)
    onnx.save(proto, str(path))
