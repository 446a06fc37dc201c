"""Layers with code of the user's own, such as attention written by hand, and `Lambda`: their code is followed.

A smaller model makes such a layer anew, and its `build` gives the weights the shapes that fit what it is called on.
"""

from __future__ import annotations

from math import prod
from typing import Any

import keras

from reprune.keras.tracing.code import graph_of_code, shapes_made
from reprune.keras.tracing.graph import own_graph, run
from reprune.keras.tracing.labels import NONE
from reprune.keras.tracing.tracer import Call, Traced, shadow


def followed(call: Call) -> Any:
    """What a layer returns, with labels; None where its code cannot be followed."""
    layer, tracer = call.operation, call.tracer
    library = type(layer).__module__.split(".")[0] in ("keras", "reprune")
    if library and not isinstance(layer, keras.layers.Lambda):
        return None
    try:
        opened = graph_of_code(layer)
    except Exception as error:
        # Whatever a stranger's code raises on symbols.
        tracer.graph.close(layer, error)
        return None
    if opened is None:
        return None
    graph, held = opened
    labelled = any(tensor.shadow is not None for tensor in call.tensors)
    if labelled:
        # What its products cost is that of its weights at every position.
        rows = prod(call.x.shape[:-1])
        for variable in held:
            if len(variable.shape) > 1:
                tracer.product(rows, *(int(size) for size in variable.shape))
    known = {id(variable): weight(variable) for variable in layer.weights}
    known.update(_as_wide_as_units(call))
    made = labels_through(call, graph, [*call.tensors, *(known[id(variable)] for variable in held)], known)
    declared = getattr(layer, "_output_shape", None)
    if isinstance(declared, tuple) and isinstance(made, Traced) and made.shadow is not None:
        # What a Lambda says it makes; the batch is left out.
        tracer.size(call, ("output_shape", made.shadow.axis - len(made.shape) + len(declared)), made.shadow.labels)
    return made


def _as_wide_as_units(call: Call) -> dict[int, Traced]:
    """Weights that the layer's `build` makes as wide as what it reads: their last axis goes with the units.

    So it is in attention whose space is as wide as its input, `add_weight(shape=(shape[-1], shape[-1]))`.
    """
    layer, tensors = call.operation, call.tensors
    units = next((tensor.shadow for tensor in tensors if tensor.shadow is not None), None)
    if units is None or len(units.labels) < 2 or not (units.labels > NONE).all():
        return {}
    shapes = [list(tensor.shape) for tensor in tensors]
    for shape, tensor in zip(shapes, tensors, strict=True):
        if tensor.shadow is not None:
            shape[tensor.shadow.axis] -= 1
    try:
        narrower = shapes_made(layer, [tuple(shape) for shape in shapes])
    except Exception:
        # Whatever a stranger's code raises on another width: it is told when the smaller model is built.
        return {}
    found = {}
    for variable, made in zip(layer.weights, narrower, strict=False):
        size = tuple(variable.shape)
        if size and size[-1] == len(units.labels) == made[-1] + 1:
            axes = tuple(range(len(size)))
            found[id(variable)] = Traced(variable, shadow(len(size) - 1, units.labels), variable, axes)
    return found


def labels_through(call: Call, graph: Any, inputs: list[Any], known: dict[int, Traced]) -> Any:
    """What the code of a layer returns.

    Args:
        call: The call of the layer.
        graph: The graph of its code.
        inputs: What that takes.
        known: Weights that its operations are handed as they are, by id.
    """
    tracer = call.tracer
    # Operations are known by their identity.
    tracer.written.append(graph)

    def inside(operation: Any, *args: Any, **kwargs: Any) -> Any:
        tracer.graph.paths.setdefault(id(operation), f"{call.path}/{operation.name}")
        inner = own_graph(operation)
        if inner is not None:
            tensors = [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, Traced)]
            return labels_through(call, inner, tensors, known)
        args = tuple(known.get(id(leaf), leaf) for leaf in args)
        return tracer.call(operation, *args, **kwargs)

    return run(graph, inputs, inside)


def weight(variable: Any) -> Traced:
    """A weight of a layer whose code is followed."""
    return Traced(variable, weight=variable, axes=tuple(range(len(variable.shape))))
