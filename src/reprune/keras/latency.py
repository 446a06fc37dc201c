"""Measure a Keras model's layers on this machine in ONNX Runtime, so that latency can be a budget."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np

from reprune.core.cost import tensor_extents
from reprune.core.latency import LatencyTable
from reprune.core.layers import Extent, Structure
from reprune.keras.export.formats import export
from reprune.keras.surgery.apply import apply
from reprune.keras.surgery.cloning import named_cells
from reprune.keras.tracing.graph import graph_of
from reprune.keras.tracing.record import trace
from reprune.runtimes.timing import ONNX_RUNTIMES, Seen, check_covered, check_runtime, small_plan, tabulate_onnx

_KINDS: dict[type, str] = {
    keras.layers.LSTMCell: "lstm", keras.layers.GRUCell: "gru", keras.layers.SimpleRNNCell: "rnn",
}  # fmt: skip


def measure_latency(
    model: Any,
    example: Any,
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    structure: Structure | None = None,
) -> LatencyTable:
    """Measure a small table of layer sizes on this machine, once, for any number of plans with `of="latency"`.

    LSTM, GRU and SimpleRNN layers and products with weights are timed by themselves at a few sizes up to those of the
    model, and the model as a whole, all as exported to ONNX; the rest of it counts as constant. Takes a minute.
    Times are the shortest of several; one thread is timed by its own clock, which other programs do not lengthen.

    Args:
        model: The model; it is left as it was.
        example: An input as the model takes it, of the batch and length that are to be fast.
        runtime: What is to be fast: `onnxruntime`, or `onnxruntime-int8` (weights in 8 bits).
        threads: Threads it may use.
        structure: What a trace of the model found on this example, if there is one already.

    Returns:
        The table: `table(plan.counts())` is a prediction in milliseconds, `table.to_json()` keeps it.

    Raises:
        BudgetError: When there is no such runtime, or `threads` is not positive.
        UnsupportedModelError: When a layer that can be pruned is of a kind that cannot be timed.
        ExportError: When the model cannot be exported, or ONNX Runtime or tf2onnx is not installed.

    Example:
        >>> table = measure_latency(model, np.zeros((1, 300, 1152), "float32"))                  # doctest: +SKIP
        >>> result = reprune.prune(model, batches, of="latency", target_ms=20, latency=table)    # doctest: +SKIP
    """
    check_runtime(runtime, ONNX_RUNTIMES, threads)
    structure = structure or trace(model, example)
    arrays = [np.asarray(leaf) for leaf in keras.tree.flatten(example)]
    seen = _layers(model, structure, arrays[0].shape[0], example)
    check_covered(seen, structure.prunable)
    small = small_plan(structure)
    models = [(structure.counts(), model), (small.counts(), apply(model, small))]
    int8 = runtime.endswith("int8")
    files = [(counts, partial(export, network, example, int8=int8)) for counts, network in models]
    return tabulate_onnx(seen, files, arrays, threads=threads, int8=int8)


def _layers(model: Any, structure: Structure, batch: int, example: Any) -> list[Seen]:
    """What one call of the model runs of what can be timed, where its sizes know units."""
    graph = graph_of(model, example)
    extents = tensor_extents(structure)
    names = {id(weight): name for name, weight in graph.weights().items()}
    recurrent: dict[tuple[Extent, ...], tuple[str, str, Extent]] = {}
    fed_back = set()
    for cell, name in named_cells(graph):
        if type(cell) in _KINDS:
            kernel, back = (extents[names[id(weight)]] for weight in (cell.kernel, cell.recurrent_kernel))
            recurrent[kernel] = name, _KINDS[type(cell)], back[0]
            fed_back.add(back)
    found = []
    for product in structure.contractions:
        if product.extents in recurrent:
            name, kind, units = recurrent[product.extents]
            steps = max(round(product.rows / batch), 1)
            found.append(Seen(name, kind, batch, steps, product.extents[0], units))
        elif len(product.extents) == 2 and product.extents not in fed_back:
            found.append(Seen("product", "linear", max(round(product.rows), 1), 1, *product.extents))
    return [layer for layer in found if layer.inputs.layers or layer.units.layers]
