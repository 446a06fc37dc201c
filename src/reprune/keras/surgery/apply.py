"""Surgery: from a plan to a smaller model, or to the masked one that it must equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from reprune.core.errors import PlanError
from reprune.core.plan import Plan
from reprune.keras.surgery.cloning import Cloner, named_cells
from reprune.keras.surgery.compiling import compile_like
from reprune.keras.surgery.layers import hand_over
from reprune.keras.surgery.rename import fitted
from reprune.keras.tracing.graph import ModelGraph, array, graph_of
from reprune.keras.tracing.rules.cells import state_name
from reprune.keras.tracing.rules.recurrent import cell_kind, cells_of

Array = Any


def apply(model: Any, plan: Plan) -> Any:
    """A new, smaller model without the units that `plan` removes.

    Names, dtypes, `trainable` and the training set-up carry over: the new model is compiled if `model` was, with the
    same loss and metrics and an optimizer of the same settings, whose state is fresh. A `Bidirectional` whose
    directions end with different sizes becomes a `RaggedBidirectional`; all other layers keep their types. A subclassed
    model becomes a functional one that is called the same way.

    Args:
        model: The model that was planned; it is left as it was.
        plan: Which units stay.

    Raises:
        PlanError: When the plan does not belong to the model.

    Example:
        >>> plan = reprune.plan(model, batches, ratio=0.5)      # doctest: +SKIP
        >>> small = reprune.apply(model, plan)                  # doctest: +SKIP
    """
    graph = graph_of(model)
    plan = fitted(plan, graph)
    tensors = folded(graph, plan)
    removed = plan.removed()
    for slot in plan.structure.slots:
        tensors[slot.tensor] = np.delete(tensors[slot.tensor], slot.positions(removed), axis=slot.axis)
    return rebuilt(model, graph, plan, plan.counts(), tensors)


def mask(model: Any, plan: Plan) -> Any:
    """A full-size copy in which nothing reads the units that `plan` removes: their columns are zero.

    This is the oracle: `apply(model, plan)` computes the same.

    Args:
        model: The model that was planned; it is left as it was.
        plan: Which units stay.

    Raises:
        PlanError: When the plan does not belong to the model.
    """
    graph = graph_of(model)
    plan = fitted(plan, graph)
    return rebuilt(model, graph, plan, plan.structure.counts(), masked_weights(graph, plan))


def masked_weights(graph: ModelGraph, plan: Plan) -> dict[str, Array]:
    """All weights as they are in the masked model."""
    tensors = folded(graph, plan)
    removed = plan.removed()
    # Units that are also read without a weight are silenced at their source.
    direct = {name: units for name, units in removed.items() if plan.structure.layers[name].direct}
    for slot in plan.structure.slots:
        gone = slot.positions(removed if slot.role == "reads" else direct)
        np.moveaxis(tensors[slot.tensor], slot.axis, 0)[gone] = 0
    return tensors


def folded(graph: ModelGraph, plan: Plan) -> dict[str, Array]:
    """Copies of all weights, with the plan's corrections: `W_K += W_P A`, `bias += W_P b`, and what was refitted."""
    tensors = {name: array(weight) for name, weight in graph.weights().items()}
    slots = {(slot.tensor, slot.axis): slot for slot in plan.structure.slots}
    removed = plan.removed()
    for fold in plan.folds:
        slot = slots[fold.tensor, fold.axis]
        gone = slot.positions(removed)
        stay = np.setdiff1d(np.arange(slot.size), gone)
        coefficients, offsets = fold.arrays(len(gone), len(stay))
        columns = np.moveaxis(tensors[fold.tensor], fold.axis, 0)
        lost = columns[gone].astype("float64")
        columns[stay] += np.tensordot(coefficients.T, lost, 1).astype(columns.dtype)
        if fold.bias is not None:
            _add_to_bias(tensors[fold.bias], np.tensordot(offsets, lost, 1), fold.tensor)
    for refit in plan.refits:
        weight = tensors[refit.tensor]
        weight[np.ix_(*plan.stays(refit.tensor, weight.shape))] = refit.array()
    return tensors


def _add_to_bias(bias: Array, gain: Array, tensor: str) -> None:
    while gain.ndim > bias.ndim:
        # The taps of a convolution's window.
        gain = gain.sum(0)
    if gain.ndim < bias.ndim:
        # A GRU that resets after the product has one bias for its input and one for its state.
        bias = bias[int(tensor.endswith("recurrent_kernel"))]
    bias += gain.astype(bias.dtype)


def rebuilt(
    model: Any,
    graph: ModelGraph,
    plan: Plan,
    sizes: Mapping[str, int],
    tensors: Mapping[str, Array],
) -> Any:
    """A model like this one in which layers have these sizes, and weights these values."""
    cloner = Cloner(graph, plan, sizes)
    cells = {id(cell): name for cell, name in named_cells(graph)}
    copied = cloner.model(model)
    named = graph.weight_names()
    for _, layer in graph.layers():
        if isinstance(layer, keras.layers.InputLayer):
            continue
        for old, new in zip(layer.weights, cloner.of(layer).weights, strict=True):
            value = tensors[named[id(old)]]
            if value.shape != tuple(new.shape):
                raise PlanError(
                    f"{named[id(old)]!r} would have shape {value.shape} after pruning, but the rebuilt model gives it "
                    f"{tuple(new.shape)}: a size is written into the model. Leave the layer alone with exclude=[…]."
                )
            new.assign(value)
        hand_over(layer, cloner.of(layer))
        _copy_states(layer, cloner.of(layer), plan, cells)
    return compile_like(model, copied)


def whole_kept(plan: Plan) -> dict[str, list[int]]:
    """Units that are kept, with those of layers that are in parts."""
    whole = {name: list(units) for name, units in plan.kept.items()}
    for name, layer in plan.structure.layers.items():
        if layer.part is not None:
            whole.setdefault(layer.part[0], []).extend(layer.part[1] + unit for unit in plan.kept[name])
    return whole


def _copy_states(old: Any, new: Any, plan: Plan, names: Mapping[int, str]) -> None:
    """The carried states of stateful layers, without the removed units."""
    if isinstance(old, keras.layers.Bidirectional):
        _copy_states(old.forward_layer, new.forward_layer, plan, names)
        _copy_states(old.backward_layer, new.backward_layer, plan, names)
        return
    if getattr(old, "states", None) is None or getattr(new, "states", None) is None:
        return
    kept, owners = whole_kept(plan), list[str]()
    for _, cell in cells_of(old):
        kind, name = cell_kind(cell), names[id(cell)]
        own = [state_name(name, state) for state in range(len(keras.tree.flatten(cell.state_size)))]
        owners += [name] * kind[2] if kind else [other if other in kept else name for other in own]
    pairs = zip(keras.tree.flatten(old.states), keras.tree.flatten(new.states), owners, strict=True)
    for before, after, name in pairs:
        value = array(before)
        after.assign(value[..., kept[name]] if after.shape[-1] < value.shape[-1] else value)
