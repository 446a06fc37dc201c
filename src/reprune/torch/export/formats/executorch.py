"""PyTorch to `.pte`, the format of ExecuTorch on phones and microcontrollers, with XNNPACK kernels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from reprune.core.exporting import EightBits
from reprune.runtimes import need
from reprune.torch.export.capture import quiet
from reprune.torch.export.formats.format import Format, Job

PRODUCTS = (torch.ops.aten.linear.default, torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default)
"""What is quantised."""


def write(job: Job, path: Path) -> None:
    """Write a job as `.pte`."""
    _lower(job.captured.program, path)


def quantise(job: Job, path: Path, way: str, batches: Sequence[Sequence[Any]]) -> tuple[Path, EightBits]:
    """The job with linear maps in 8 bits, those inside recurrent layers included; see `Quantise`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tool = need("torchao.quantization.pt2e.quantize_pt2e", 'int8= for ".pte" files')
        kinds = need("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", "int8=")
    example = job.captured.example
    # Recurrent operators become their steps, in which products stay what the quantiser looks for.
    table: dict[Any, Any] = {**torch.export.default_decompositions()}
    for operation in PRODUCTS:
        table.pop(operation, None)
    scheme = kinds.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=way == "dynamic")
    with quiet(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        steps = job.captured.program.run_decompositions(table).module()
        quantiser = kinds.XNNPACKQuantizer()
        # Sums and products of gates lose more in 8 bits than they save.
        for operation in PRODUCTS:
            quantiser.set_operator_type(operation, scheme)
        prepared = tool.prepare_pt2e(steps, quantiser)
        for arrays in batches or [example.arrays()]:
            example.with_tensors(lambda at, _, arrays=arrays: torch.from_numpy(arrays[at])).call(prepared)  # type: ignore[misc]
        converted = tool.convert_pt2e(prepared)
        if way == "static":
            _share_ranges(converted.graph)
        program = torch.export.export(converted, example.args, example.kwargs, strict=False)
    target = path.with_name(f"int8-{path.name}")
    _lower(program, target)
    return target, _counted(program)


def _share_ranges(graph: Any) -> None:
    """Give all that is multiplied with one weight, as the states of all steps are, one range.

    A bias is stored in units of the range of what comes in, and XNNPACK stores that of a weight once.
    """
    groups: list[tuple[set[Any], set[Any]]] = []
    for node in graph.nodes:
        if node.target not in PRODUCTS or len(node.args) < 3 or _operation(node.args[0]) != "dequantize_per_tensor":
            continue
        given, biases = {node.args[0].args[0]}, {node.args[2]}
        for group in [group for group in groups if group[0] & given or group[1] & biases]:
            groups.remove(group)
            given, biases = given | group[0], biases | group[1]
        groups.append((given, biases))
    for given, _ in groups:
        ranges = [node.args[1:5] for node in given]
        low = min((least - zero) * scale for scale, zero, least, _ in ranges)
        high = max((most - zero) * scale for scale, zero, _, most in ranges)
        _, _, least, most = ranges[0]
        scale = (high - low) / (most - least)
        for node in [changed for quantised in given for changed in (quantised, *quantised.users)]:
            node.args = (node.args[0], scale, round(least - low / scale), *node.args[3:])


def _operation(node: Any) -> str:
    """`squeeze` for `aten.squeeze.dims`."""
    return str(getattr(node.target, "_opname", "")) if node.op == "call_function" else ""


def _lower(program: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Its dependencies announce changes of their own.
        exir = need("executorch.exir", "Exporting to .pte")
        xnnpack = need("executorch.backends.xnnpack.partition.xnnpack_partitioner", "Exporting to .pte")
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="executorch|torch")
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


def _counted(program: Any) -> EightBits:
    """What a quantised program holds in 8 bits."""
    signature, values = program.graph_signature, {**program.constants, **program.state_dict}
    named = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    # What the quantiser has replaced is still there, and nothing reads it.
    read = {
        named[node.name]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.users and node.name in named
    }
    held = [values[name] for name in read if _is_numbers(values[name])]
    weights = [value for value in held if value.dim() > 1]
    eight = [value for value in held if value.dtype == torch.int8]
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    activations = [node for node in calls if str(node.target).startswith("quantized_decomposed.quantize")]
    return EightBits(
        tensors=len(eight) + len(activations),
        of=len(held) + len(calls),
        weights=sum(value.numel() for value in eight),
        of_weights=sum(value.numel() for value in weights),
        left=("gates, states and biases: only linear maps and convolutions are in 8 bits",),
    )


def _is_numbers(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.int8, torch.float32) and value.dim() > 0


FORMAT = Format(
    write,
    dynamic=False,
    quantise={"dynamic": quantise, "static": quantise},
    needs=("executorch",),
    quantise_needs=("torchao",),
    note="all sizes are those of the example: ExecuTorch has no recurrent operator, its steps are unrolled",
)
