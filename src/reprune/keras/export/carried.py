"""For export: which inputs of a Keras model are states, and which of its outputs are their next values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from reprune.core.errors import RepruneError
from reprune.core.exporting import ExportError
from reprune.keras.tracing.record import record


def carried_states(model: Any, example: Any) -> list[tuple[int, int]]:
    """Positions of the inputs that are states, with those of the outputs that hold their next values.

    The trace tells, which follows units from inputs to outputs.
    """
    declared = _declared(model)
    if len(declared) < 2:
        return []
    try:
        states = record(model, example).structure().states
    except RepruneError:
        return []
    places = [str(tensor._keras_history.operation.name) for tensor in declared]
    return [
        (places.index(str(state.given.path[0])), int(state.returned.path[0]))
        for state in states
        if state.given is not None and state.returned is not None
    ]


def check_shapes(model: Any, arrays: Sequence[Any], what: str) -> None:
    """Raise an `ExportError` where an array is not what a model declares.

    Args:
        model: The model.
        arrays: Its inputs, flat.
        what: What they are, for the message.
    """
    declared = _declared(model)
    if declared and len(declared) != len(arrays):
        raise ExportError(f"{what} holds {len(arrays)} arrays; {model.name} takes {len(declared)}.")
    for tensor, array in zip(declared, arrays, strict=False):
        if len(tensor.shape) != array.ndim or any(
            size not in (None, given) for size, given in zip(tensor.shape, array.shape, strict=True)
        ):
            raise ExportError(
                f"{what}: {tensor._keras_history.operation.name} has shape {array.shape}, and {model.name} takes "
                f"{tuple(tensor.shape)}. States of a pruned model are as wide as what is left of its layers."
            )


def _declared(model: Any) -> list[Any]:
    """The inputs of a functional model; none of one that declares nothing, as a subclass."""
    try:
        return list(keras.tree.flatten(model.inputs))
    except (AttributeError, ValueError):
        return []
