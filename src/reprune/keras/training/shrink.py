"""A Keras model that is being trained becomes smaller in place: the same objects, with fewer units, and its optimizer.

Every layer and every variable stays the object that it was, so that whatever holds one goes on with it; variables get
smaller values, layers the sizes of a smaller copy.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from reprune.core.errors import RecipeError
from reprune.core.plan import Plan
from reprune.keras.surgery.apply import folded
from reprune.keras.tracing.configuration import sublayers
from reprune.keras.tracing.graph import ModelGraph, array, graph_of
from reprune.keras.training.technique import renew

Cuts = list[tuple[int, Any]]


def shrink(model: Any, plan: Plan, pattern: Any, optimizer: Any) -> None:
    """Remove units from a model in place, with their share of what its optimizer remembers.

    Args:
        model: The model.
        plan: Which of its units stay.
        pattern: A model of the sizes that it is to have, made by `apply`.
        optimizer: The optimizer, or None.

    Raises:
        RecipeError: The optimizer keeps something that cannot be cut, before anything has changed.
    """
    graph, smaller = graph_of(model), graph_of(pattern)
    cuts = _cuts(graph, plan)
    kept = _remembered(optimizer, {id(weight): cuts[name] for name, weight in graph.weights().items() if name in cuts})
    tensors = folded(graph, plan)
    for old, new in zip(graph.operations, smaller.operations, strict=True):
        _take_sizes(old, new)
    for name, weight in graph.weights().items():
        if name in cuts:
            _resize(weight, _cut(tensors[name], cuts[name]))
        else:
            weight.assign(tensors[name])
    for variable, value in kept:
        _resize(variable, value)
    _recognise(optimizer)
    for state, new in zip(graph.states(), smaller.states(), strict=True):
        if state.shape != new.shape:
            _resize(state, array(new))
    renew(model)


def check_optimizer(model: Any, plan: Plan, optimizer: Any) -> None:
    """Raise unless what the optimizer remembers can become smaller; see `shrink`."""
    if keras.backend.backend() == "jax":
        raise RecipeError(
            "schedule='gradual' makes variables smaller while training, and on the JAX backend the training step holds "
            "them in their old shapes: set KERAS_BACKEND to tensorflow, or give 'soft', 'fractional' or 'after'."
        )
    graph = graph_of(model)
    cuts = _cuts(graph, plan)
    _remembered(optimizer, {id(weight): cuts[name] for name, weight in graph.weights().items() if name in cuts})


def _cuts(graph: ModelGraph, plan: Plan) -> dict[str, Cuts]:
    """For every weight that loses positions: axes, and the positions that stay."""
    removed = plan.removed()
    names = dict(zip(plan.structure.shapes, graph.weights(), strict=True))
    cuts: dict[str, Cuts] = {}
    for slot in plan.structure.slots:
        gone = slot.positions(removed)
        if len(gone):
            cuts.setdefault(names[slot.tensor], []).append((slot.axis, np.setdiff1d(np.arange(slot.size), gone)))
    return cuts


def _cut(value: Any, cuts: Cuts) -> Any:
    for axis, stay in cuts:
        if value.ndim > axis and value.shape[axis] > 1:
            value = np.take(value, stay, axis)
    return value


def _remembered(optimizer: Any, cuts: dict[int, Cuts]) -> list[tuple[Any, Any]]:
    """What the optimizer keeps for weights that become smaller, with its smaller values."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    trained = list(getattr(optimizer, "_trainable_variables", ()))
    found = []
    for key, held in vars(optimizer).items() if trained else ():
        if key == "_trainable_variables" or not isinstance(held, (list, tuple)) or len(held) != len(trained):
            continue
        for weight, variable in zip(trained, held, strict=True):
            if id(weight) not in cuts or not isinstance(variable, keras.Variable):
                continue
            sizes = zip(variable.shape, weight.shape, strict=False)
            if len(variable.shape) != len(weight.shape) or any(one not in (1, whole) for one, whole in sizes):
                raise RecipeError(
                    f"{type(optimizer).__name__} keeps {variable.name!r}, which cannot be cut with the weights: give "
                    "another optimizer, or a schedule under which the model keeps its size, such as 'soft:200'."
                )
            found.append((variable, _cut(array(variable), cuts[id(weight)])))
    return found


def _recognise(optimizer: Any) -> None:
    """Let an optimizer know its variables again: some backends tell them by what they hold."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if getattr(optimizer, "built", False):
        places = enumerate(optimizer._trainable_variables)
        optimizer._trainable_variables_indices = {optimizer._var_key(variable): place for place, variable in places}


def _resize(variable: Any, value: Any) -> None:
    """Give a variable a value of another shape."""
    variable._shape = tuple(value.shape)
    variable._initialize(keras.ops.convert_to_tensor(value, dtype=variable.dtype))


def _take_sizes(old: Any, new: Any) -> None:
    """Give an operation the sizes of a smaller one."""
    if isinstance(old, keras.layers.Bidirectional):
        # Ragged or not, as its directions are now.
        old.__class__ = type(new)
    if type(old) is not type(new) and not isinstance(new, keras.Model):
        raise RecipeError(f"{old.name!r} cannot become smaller while it is trained: give the schedule 'soft:200'.")
    for key, value in vars(new).items():
        if _is_size(value) and key in vars(old) and vars(old)[key] != value:
            object.__setattr__(old, key, value)
    if isinstance(old, keras.layers.Layer):
        for part, smaller in zip(sublayers(old), sublayers(new), strict=not isinstance(new, keras.Model)):
            _take_sizes(part, smaller)


def _is_size(value: Any) -> bool:
    """Whether a layer's attribute is made of numbers of units, and of nothing that belongs to the layer itself."""
    if isinstance(value, keras.InputSpec):
        return True
    if isinstance(value, (list, tuple)):
        return all(_is_size(part) for part in value)
    if isinstance(value, dict):
        return all(_is_size(part) for part in value.values())
    return value is None or (isinstance(value, int) and not isinstance(value, bool))
