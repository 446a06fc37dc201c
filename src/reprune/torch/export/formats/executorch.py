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
    # Recurrent operators become their steps, in which the linear maps stay what the quantiser looks for.
    table: dict[Any, Any] = {**torch.export.default_decompositions()}
    table.pop(torch.ops.aten.linear.default, None)
    scheme = kinds.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=way == "dynamic")
    with quiet(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        steps = job.captured.program.run_decompositions(table).module()
        prepared = tool.prepare_pt2e(steps, kinds.XNNPACKQuantizer().set_global(scheme))
        for arrays in batches or [example.arrays()]:
            example.with_tensors(lambda at, _, arrays=arrays: torch.from_numpy(arrays[at])).call(prepared)  # type: ignore[misc]
        program = torch.export.export(tool.convert_pt2e(prepared), example.args, example.kwargs, strict=False)
    target = path.with_name(f"int8-{path.name}")
    _lower(program, target)
    return target, _counted(program)


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
        left=("gates, states and biases: only linear maps are in 8 bits",),
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
