"""Layers that hold weights of their own (`add_weight`), such as attention written by hand: their code is followed.

A smaller model makes such a layer anew, and its `build` gives the weights the shapes that fit what it is called on.
"""

from __future__ import annotations

from math import prod
from typing import Any

from reprune.keras.tracing.graph import graph_with_weights, run
from reprune.keras.tracing.tracer import Call, Traced


def followed(call: Call) -> Any:
    """What a layer returns, with labels; None where its code cannot be followed."""
    layer, tracer = call.operation, call.tracer
    if not layer.weights or type(layer).__module__.split(".")[0] in ("keras", "reprune"):
        return None
    opened = graph_with_weights(layer)
    if opened is None:
        return None
    graph, held = opened
    tracer.written.append(graph)
    known = {id(variable): _weight(variable) for variable in layer.weights}

    def inside(operation: Any, *args: Any, **kwargs: Any) -> Any:
        tracer.graph.paths.setdefault(id(operation), f"{call.path}/{operation.name}")
        args = tuple(known.get(id(leaf), leaf) for leaf in args)
        return tracer.call(operation, *args, **kwargs)

    labelled = any(tensor.shadow is not None for tensor in call.tensors)
    if labelled:
        # What its products cost is that of its weights at every position.
        rows = prod(call.x.shape[:-1])
        for variable in held:
            if len(variable.shape) > 1:
                tracer.product(rows, *(int(size) for size in variable.shape))
    return run(graph, [*call.tensors, *(known[id(variable)] for variable in held)], inside)


def _weight(variable: Any) -> Traced:
    return Traced(variable, weight=variable, axes=tuple(range(len(variable.shape))))
