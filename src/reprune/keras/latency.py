"""Measure a Keras model's layers on this machine in ONNX Runtime, so that latency can be a budget."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np

from reprune.core.budget.cost import tensor_extents
from reprune.core.budget.latency import LatencyTable
from reprune.core.layers import Extent, Structure
from reprune.keras.export.formats import export
from reprune.keras.surgery.apply import apply
from reprune.keras.surgery.cloning import named_cells
from reprune.keras.surgery.verify import narrowed
from reprune.keras.tracing.graph import graph_of
from reprune.keras.tracing.record import Forward, captured, record
from reprune.runtimes.timing import ONNX_RUNTIMES, Seen, check_covered, check_runtime, small_plan, tabulate_onnx

_KINDS: dict[type, str] = {
    keras.layers.LSTMCell: "lstm", keras.layers.GRUCell: "gru", keras.layers.SimpleRNNCell: "rnn",
}  # fmt: skip


def measure_latency(
    model: Any,
    example: Any,
    *,
    runtime: str | None = None,
    threads: int = 1,
    forward: Forward | None = None,
    structure: Structure | None = None,
) -> LatencyTable:
    """See `reprune.measure_latency`. All is timed as exported to ONNX."""
    runtime = runtime or ONNX_RUNTIMES[0]
    check_runtime(runtime, ONNX_RUNTIMES, threads)
    example = captured(model, example, forward)
    found = record(model, example)
    structure = structure or found.structure()
    arrays = [np.asarray(leaf) for leaf in keras.tree.flatten(example)]
    seen = _layers(model, structure, arrays[0].shape[0], example)
    check_covered(seen, structure)
    small = small_plan(structure)
    thin = apply(model, small)
    # States that a model is handed have fewer units in the small one.
    narrow = captured(thin, example, narrowed(found, model, small, None))
    models = [(structure.counts(), model, example), (small.counts(), thin, narrow)]
    int8 = runtime.endswith("int8")
    files = [(counts, partial(export, network, given, int8=int8)) for counts, network, given in models]
    return tabulate_onnx(seen, files, arrays, threads=threads, int8=int8)


def _layers(model: Any, structure: Structure, batch: int, example: Any) -> list[Seen]:
    """What one call of the model runs of what can be timed, where its sizes know units."""
    graph = graph_of(model, example)
    extents = tensor_extents(structure)
    names = graph.weight_names()
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
