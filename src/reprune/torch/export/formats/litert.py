"""PyTorch to `.tflite`, the format of LiteRT on Android and iOS, by LiteRT's own PyTorch converter and quantiser."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reprune.core.exporting import EightBits, ExportError
from reprune.runtimes import count_eight_bits, need
from reprune.torch.export.capture import quiet
from reprune.torch.export.formats.format import Format, Job

RECIPES = {"dynamic": "dynamic_wi8_afp32", "static": "static_wi8_ai8", "int16x8": "static_wi8_ai16"}
"""The quantiser's own name for each way to quantise."""


def write(job: Job, path: Path) -> None:
    """Write a job as `.tflite`."""
    converter = need("litert_torch", "Exporting PyTorch models to .tflite")
    example = job.captured.example
    with quiet(), _silent():
        converter.convert(job.model, example.args, sample_kwargs=example.kwargs or None).export(str(path))


def quantise(job: Job, path: Path, way: str, batches: Sequence[Sequence[Any]]) -> tuple[Path, EightBits]:
    """The file in 8 bits; its inputs and outputs stay real numbers. See `Quantise`."""
    tool = need("ai_edge_quantizer", "int8= for PyTorch models in .tflite files")
    names = tool.qtyping.TFLOperationName
    target = path.with_name(f"int8-{path.name}")
    with quiet(), _silent():
        quantiser = tool.quantizer.Quantizer(str(path))
        quantiser.load_quantization_recipe(getattr(tool.recipe, RECIPES[way])())
        for port in (names.INPUT, names.OUTPUT):
            quantiser.update_quantization_recipe(regex=".*", operation_name=port, algorithm_key="no_quantize")
        ranges = _ranges(quantiser, path, batches) if quantiser.need_calibration else None
        quantiser.quantize(ranges).export_model(str(target), overwrite=True)
    _require_real_outputs(target, way)
    return target, replace(count_eight_bits(target), left=_left(way))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the progress that these tools print from the user."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _ranges(quantiser: Any, path: Path, batches: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """The range of every tensor over all batches; the tool's own is a moving average, which cuts states off."""
    signatures = _interpreter(path).get_signature_list()
    (signature,) = signatures
    names = sorted(signatures[signature]["inputs"], key=lambda name: int(name.rpartition("_")[2]))
    found: dict[str, Any] = {}
    for arrays in batches:
        measured = quantiser.calibrate({signature: [dict(zip(names, arrays, strict=True))]})
        for name, bounds in measured.items():
            wider = {"min": np.minimum, "max": np.maximum}
            known = found.get(name)
            found[name] = {**bounds, **{key: wider[key](known[key], bounds[key]) for key in wider if known}}
    return found


def _require_real_outputs(path: Path, way: str) -> None:
    """Raise an `ExportError` if the quantiser left an output in integers, which cannot be fed back as a state."""
    whole = [port["name"] for port in _interpreter(path).get_output_details() if port["dtype"] in (np.int8, np.int16)]
    if whole:
        raise ExportError(
            f"int8={way!r}: LiteRT's quantiser keeps {', '.join(whole)} of this .tflite file in integers, because the "
            'model itself reads it as well. Use int8="dynamic", or write an .onnx file.'
        )


def _interpreter(path: Path) -> Any:
    return need("ai_edge_litert.interpreter", "int8=").Interpreter(model_path=str(path))


def _left(way: str) -> tuple[str, ...]:
    return ("activations: they are quantised on the fly, for products with weights",) if way == "dynamic" else ()


FORMAT = Format(
    write,
    dynamic=False,
    quantise=dict.fromkeys(RECIPES, quantise),
    needs=("litert_torch", "ai_edge_litert"),
    quantise_needs=("ai_edge_quantizer",),
    note="all sizes are those of the example: this converter unrolls the steps",
)
