"""How a model takes batches, and what to say when it takes them in no way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from reprune.core.errors import BatchError, RepruneError
from reprune.core.evidence import parts
from reprune.core.evidence.parts import shown
from reprune.core.evidence.passes import Forward
from reprune.keras.tracing.graph import flat_inputs, root_of
from reprune.keras.tracing.location import line_of_error
from reprune.keras.tracing.positional import Arguments, wanted_arguments
from reprune.keras.tracing.record import captured


def accepted(model: Any, example: Any, forward: Forward | None = None) -> Forward | None:
    """How a model takes the batches of which `example` is one; see `core.evidence.parts.accepted`.

    Raises:
        BatchError: When the model takes no part of it; the message says what was passed, and what the model wants.
        UnsupportedModelError: When the model can be called on nothing at all.
    """
    functional = hasattr(model, "operations")
    return parts.accepted(
        model,
        example,
        forward,
        lambda batch, way: _failure(model, batch, way),
        lambda error: _refused(model, example, forward, error),
        spread=not functional and len(wanted_arguments(model)) > 1,
    )


def _failure(model: Any, example: Any, forward: Forward | None) -> Exception | None:
    """What stands against the example as the inputs of the model's graph."""
    try:
        given = captured(model, example, forward)
        _check_fits(root_of(model, given), given)
    except Exception as error:
        return error
    return None


def _check_fits(graph: Any, given: Any) -> None:
    """Raise unless inputs are those of a graph. Keras itself takes the first ones of too many, with a warning."""
    wanted = "its inputs are " + ", ".join(f"{spec.name} {spec.shape}" for spec in graph.inputs)
    if isinstance(given, Mapping) and isinstance(graph.input, Mapping):
        fits = set(given) == set(graph.input)
    else:
        values = given.values if isinstance(given, Arguments) else given
        fits = isinstance(given, Mapping) or len(keras.tree.flatten(values)) == len(graph.inputs)
    if not fits:
        raise ValueError(wanted)
    try:
        found = flat_inputs(graph, given)
    except Exception:  # Keras prints the whole array, or stumbles at what is none.
        raise ValueError(wanted) from None
    for spec, value in zip(graph.inputs, found, strict=True):
        sizes = () if value is None else zip(spec.shape, value.shape, strict=True)
        if any(size is not None and size != length for size, length in sizes):
            raise ValueError(wanted)


def _refused(model: Any, example: Any, forward: Forward | None, error: Exception) -> Exception:
    if isinstance(error, RepruneError):
        return error
    how = "forward(model, batch)" if forward is not None else type(model).__name__
    line = line_of_error(error)
    where = f" ({type(error).__name__} at {line})" if line else ""
    return BatchError(
        f"{how} does not run on the first batch: {(str(error).strip() or repr(error)).splitlines()[0]}{where}. It was "
        f"given {shown(example)}. Give batches as the model takes them (an array, or a list or dict of its inputs), or "
        "say how with forward=, such as forward=lambda model, batch: model(batch[0])."
    )
