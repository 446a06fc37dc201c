"""Measure a PyTorch model's layers on this machine, so that latency can be a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from reprune.core.budget.cost import tensor_extents
from reprune.core.budget.latency import LatencyTable
from reprune.core.evidence.passes import Forward
from reprune.core.layers import Structure
from reprune.runtimes.convolution import Geometry
from reprune.runtimes.timing import (
    ONNX_RUNTIMES,
    Call,
    Model,
    Seen,
    Sizes,
    check_covered,
    check_runtime,
    small_plan,
    tabulate,
    tabulate_onnx,
)
from reprune.runtimes.torch_export import pytorch_threads
from reprune.torch.export import export
from reprune.torch.export.example import Example
from reprune.torch.export.recurrent import recurrent_modules
from reprune.torch.surgery.apply import apply
from reprune.torch.tracing.record import trace
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.running.calling import invoke
from reprune.torch.tracing.running.copies import duplicate, fresh
from reprune.torch.tracing.running.unwrap import checked

Axis = tuple[str, int]
RUNTIMES = ("torch", *ONNX_RUNTIMES)
_CELLS: dict[type[nn.Module], str] = {nn.LSTMCell: "lstm_cell", nn.GRUCell: "gru_cell", nn.RNNCell: "rnn_cell"}
_LAYERS: dict[str, Any] = {
    "lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN, "linear": nn.Linear,
    **{kind: cell for cell, kind in _CELLS.items()},
}  # fmt: skip


def measure_latency(
    model: nn.Module,
    example: Any,
    *,
    runtime: str | None = None,
    threads: int = 1,
    forward: Forward | None = None,
    structure: Structure | None = None,
) -> LatencyTable:
    """See `reprune.measure_latency`. Linear layers and cells are timed, too; what runs in PyTorch runs on the CPU."""
    runtime = runtime or "torch"
    check_runtime(runtime, RUNTIMES, threads)
    model = checked(model)
    structure = structure or trace(model, example, forward)
    twin = duplicate(model).cpu().eval()
    example = fresh(example)
    example = torch.utils._pytree.tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, example)
    seen = _layers(twin, structure, example, forward)
    check_covered(seen, structure)
    small = small_plan(structure)
    models = [(structure.counts(), twin), (small.counts(), apply(twin, small))]
    if runtime in ONNX_RUNTIMES:
        int8 = runtime.endswith("int8")
        files = [(counts, partial(export, network, example, int8=int8)) for counts, network in models]
        return tabulate_onnx(seen, files, Example.of(twin, example).arrays(), threads=threads, int8=int8)
    shapes = [tuple(tensor.shape) for tensor in tensors_in(example)]
    with pytorch_threads(threads), torch.inference_mode():
        calls = [Model(counts, partial(invoke, network, example, forward)) for counts, network in models]
        name = f"torch {torch.__version__}"
        return tabulate(seen, _build, *calls, runtime=name, threads=threads, shapes=shapes)


@dataclass(frozen=True)
class _Timed:
    """What can be timed of one module: for every layer in it, its name and the axes of its inputs and its units."""

    path: str
    kind: str
    layers: list[tuple[str, Axis, Axis]]


def _timed(model: nn.Module) -> Iterator[_Timed]:
    for path, module in recurrent_modules(model):
        if not getattr(module, "proj_size", 0):
            ends = ["", "_reverse"] if module.bidirectional else [""]
            suffixes = [f"l{layer}{end}" for layer in range(module.num_layers) for end in ends]
            layers = [_axes(path, f"{path}:{suffix}", f"_{suffix}") for suffix in suffixes]
            yield _Timed(path, module.mode.split("_")[0].lower(), layers)
    for path, module in model.named_modules():
        if type(module) in _CELLS:
            yield _Timed(path, _CELLS[type(module)], [_axes(path, path, "")])
        elif type(module) is nn.Linear or _is_timed_convolution(module):
            weight, turned = f"{path}.weight".lstrip("."), int(getattr(module, "transposed", False))
            yield _Timed(path, "linear", [(path, (weight, 1 - turned), (weight, turned))])


def _is_timed_convolution(module: nn.Module) -> bool:
    """Whether it is an ordinary convolution, whose channels all read each other."""
    return (
        isinstance(module, nn.modules.conv._ConvNd)
        and type(module).__module__ == nn.modules.conv.__name__
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _axes(path: str, name: str, suffix: str) -> tuple[str, Axis, Axis]:
    read, fed = (f"{path}.weight_{kind}{suffix}".lstrip(".") for kind in ("ih", "hh"))
    return name, (read, 1), (fed, 1)


def _layers(model: nn.Module, structure: Structure, example: Any, forward: Forward | None) -> list[Seen]:
    """What one call of the model runs of what can be timed, where its sizes know units."""
    extents = tensor_extents(structure)
    modules = list(_timed(model))
    ran: dict[str, Counter[tuple[str, int, int]]] = {module.path: Counter() for module in modules}
    handles = [
        model.get_submodule(module.path).register_forward_pre_hook(
            _watch(ran[module.path], module.kind), with_kwargs=True
        )
        for module in modules
    ]
    try:
        with torch.no_grad():
            invoke(model, example, forward)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for module in modules:
        for name, read, made in module.layers:
            if read[0] in extents and made[0] in extents:
                inputs, units = extents[read[0]][read[1]], extents[made[0]][made[1]]
                runs = ran[module.path].items()
                found += [Seen(name, *run, inputs, units, calls) for run, calls in runs]
    return [layer for layer in found if layer.inputs.layers or layer.units.layers]


def _watch(runs: Counter[tuple[str, int, int]], kind: str) -> Callable[..., None]:
    """Counts calls by kind, batch and steps; by rows and one step for what knows no steps."""

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        data = args[0] if args else next(iter(kwargs.values()))
        if isinstance(module, nn.modules.conv._ConvNd):
            places = tuple(data.shape[-len(module.kernel_size) :])
            padding: Any = module.padding
            geometry = Geometry(module.transposed, module.kernel_size, module.stride, padding, module.dilation, places)
            runs[str(geometry), data.shape[0] if data.dim() > len(places) + 1 else 1, 1] += 1
            return
        if isinstance(data, PackedSequence):
            size = int(data.batch_sizes[0]), len(data.batch_sizes)
        elif type(module) in _CELLS or type(module) is nn.Linear:
            size = max(data.numel() // data.shape[-1], 1), 1
        else:
            steps = data.shape[1 if module.batch_first and data.dim() == 3 else 0]
            size = data.numel() // (steps * data.shape[-1]), steps
        runs[(kind, *size)] += 1

    return note


def _build(sizes: Sizes) -> Call:
    geometry = Geometry.of_kind(sizes.kind)
    if geometry is not None:
        return _convolution(geometry, sizes)
    module = _LAYERS[sizes.kind](sizes.inputs, sizes.units).eval()
    rows = sizes.kind == "linear" or sizes.kind.endswith("_cell")
    data = torch.randn(*((sizes.batch,) if rows else (sizes.steps, sizes.batch)), sizes.inputs)
    return lambda: module(data)


def _convolution(geometry: Geometry, sizes: Sizes) -> Call:
    channels = (sizes.inputs, sizes.units) if geometry.transposed else (sizes.units, sizes.inputs)
    data, weight = torch.randn(sizes.batch, sizes.inputs, *geometry.places), torch.randn(*channels, *geometry.kernel)
    steps, none = (list(geometry.stride), list(geometry.padding), list(geometry.dilation)), [0] * len(geometry.kernel)
    return lambda: torch.convolution(data, weight, None, *steps, geometry.transposed, none, 1)
