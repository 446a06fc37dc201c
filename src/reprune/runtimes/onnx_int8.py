"""Quantise `.onnx` files to 8 bits with ONNX Runtime's tools and kernels, recurrent operators included."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reprune.runtimes import need
from reprune.runtimes.onnx_recurrence import write_out

FASTER_FROM = 384
"""Units from which a GRU or RNN written out with 8-bit products beats its operator in single precision.

Every step of what is written out costs a dozen small operations, whatever its size. To see it on a machine:
`python benchmarks/runtimes.py --only gru --units 384`.
"""


def quantise(path: Path, way: str = "dynamic", batches: Sequence[Sequence[Any]] = ()) -> tuple[Path, list[str]]:
    """The same model in 8 bits, in a file beside the given one, and what stayed in single precision and why.

    Args:
        path: The `.onnx` file in single precision.
        way: `dynamic` quantises weights, and activations on the fly: LSTMs become ONNX Runtime's quantised operator,
            and GRUs and RNNs, for which there is none, are written out where that is faster. `static` fixes the ranges
            of activations, between `QuantizeLinear` and `DequantizeLinear` nodes; all recurrent layers are written out.
        batches: For `static`: inputs of the file, in its order.
    """
    tool = need("onnxruntime.quantization", "int8=")
    onnx = need("onnx", "int8=")
    proto = onnx.load(str(path))
    static = way == "static"

    def wanted(node: Any, units: int) -> bool:
        return static or (node.op_type != "LSTM" and units >= FASTER_FROM)

    refused = write_out(proto, wanted, static=static)
    prepared, target = path.with_name(f"prepared-{path.name}"), path.with_name(f"int8-{path.name}")
    ports = {port.name for port in proto.graph.input}
    defaults = [weight for weight in proto.graph.initializer if weight.name in ports]
    # The tool would take what inputs are when they are left out for weights, and the inputs away.
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for weight in defaults:
        bare.graph.initializer.remove(weight)
    onnx.save(bare, str(prepared))
    with _quiet():
        if static:
            tool.quantize_static(
                str(prepared),
                str(target),
                _Reader(proto, batches),
                quant_format=tool.QuantFormat.QDQ,
                op_types_to_quantize=["MatMul", "Gemm", "Conv"],
                nodes_to_exclude=_stacked_products(proto),
                activation_type=tool.QuantType.QUInt8,
                weight_type=tool.QuantType.QInt8,
                per_channel=True,
                # Gates and answers keep their precision: sums of products become real numbers at once.
                extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
            )
        else:
            tool.quantize_dynamic(
                str(prepared),
                str(target),
                op_types_to_quantize=["LSTM", "MatMul", "Gemm", "Gather"],
                nodes_to_exclude=_stacked_products(proto),
                weight_type=tool.QuantType.QInt8,
                per_channel=True,
            )
    prepared.unlink()
    written = onnx.load(str(target))
    written.graph.initializer.extend(defaults)
    onnx.save(written, str(target))
    return target, [*refused, *_left(written, static)]


def _left(proto: Any, static: bool) -> list[str]:
    """What a quantised file holds in single precision, in sentences."""
    counted = Counter(node.op_type for node in proto.graph.node)
    lines = [
        f"{counted[kind]} {kind} operator(s) of fewer than {FASTER_FROM} units: ONNX Runtime has no 8-bit form of "
        "them, and written out in 8-bit products they would be slower"
        for kind in ("GRU", "RNN")
        if counted[kind] and not static
    ]
    if counted["Scan"]:
        lines.append("gates and cell states of recurrent layers: their products with weights are in 8 bits")
    return lines


class _Reader:
    """Calibration inputs as ONNX Runtime's quantiser asks for them."""

    def __init__(self, proto: Any, batches: Sequence[Sequence[Any]]) -> None:
        defaults = {weight.name for weight in proto.graph.initializer}
        ports = [port.name for port in proto.graph.input]
        # Inputs that may be left out come last in the file's order.
        names = [name for name in ports if name not in defaults] + [name for name in ports if name in defaults]
        self._feeds: Iterator[dict[str, Any]] = iter([dict(zip(names, batch, strict=True)) for batch in batches])

    def get_next(self) -> dict[str, Any] | None:
        """The next inputs by name; None at the end."""
        return next(self._feeds, None)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._feeds


def _stacked_products(proto: Any) -> list[str]:
    """Products with several matrices at once, such as projections of both directions: of these it has no 8-bit form."""
    stacked = {weight.name for weight in proto.graph.initializer if len(weight.dims) > 2}
    return [node.name for node in proto.graph.node if node.op_type == "MatMul" and stacked & set(node.input)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tool's advice, which is for convolutional networks and logged to the root logger, from the user."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
