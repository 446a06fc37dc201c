"""One layer copied: by its configuration, or, where that does not tell all, with what it holds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np

from reprune.core.errors import UnsupportedModelError
from reprune.keras.tracing.configuration import sublayers
from reprune.keras.tracing.graph import array

# What Keras itself puts into the configuration of every layer.
_COMMON = ("name", "trainable", "dtype")


def is_plain(operation: Any) -> bool:
    """Whether an operation is a layer of the user's own with neither weights nor layers inside: all it holds stays."""
    return (
        isinstance(operation, keras.layers.Layer)
        and type(operation).__module__.split(".")[0] not in ("keras", "reprune")
        and not isinstance(operation, (keras.layers.Lambda, keras.layers.InputLayer))
        and not operation.variables
        and not sublayers(operation)
    )


def as_it_is(layer: Any, *, built: bool = True, parts: Mapping[int, Any] | None = None) -> Any:
    """A layer of the same class with the same attributes, whatever its constructor takes and its `get_config` tells.

    Args:
        layer: A layer.
        built: Whether its `build` is over; otherwise it runs when the copy is first called, and makes new weights.
        parts: What is in place of layers inside, by their ids.
    """
    kind: Any = type(layer)
    copy = kind.__new__(kind)
    keras.layers.Layer.__init__(copy, name=layer.name, trainable=layer.trainable, dtype=layer.dtype_policy)
    # Layers inside are modules on PyTorch, whose attributes are kept apart.
    held = {**vars(layer).get("_modules", {}), **vars(layer)}
    own = {"supports_masking", "input_spec", "activity_regularizer", *(held.keys() - vars(copy).keys())}
    weights = {id(variable) for variable in layer.variables}
    for key in sorted(own & held.keys()):
        # What a backend notes of an object is about that one.
        if id(held[key]) not in weights and not key.startswith(("_self_", "_tracked", "_torch_params")):
            setattr(copy, key, (parts or {}).get(id(held[key]), held[key]))
    copy.built = built
    return copy


def made_anew(operation: Any, config: dict[str, Any]) -> Any:
    """An operation of the same class by its configuration, also where the constructor takes only a part of it.

    Raises:
        UnsupportedModelError: When it cannot be copied so.
    """
    kind = type(operation)
    try:
        return kind.from_config(config)
    except TypeError as error:
        takes = inspect.signature(kind.__init__).parameters
        lacking = [key for key in _COMMON if key in config and key not in takes]
        if isinstance(operation, keras.layers.Layer) and lacking:
            try:
                copy = kind(**{key: value for key, value in config.items() if key not in lacking})
            except TypeError:
                pass
            else:
                for key in ("name", "trainable", "dtype_policy"):
                    setattr(copy, key, getattr(operation, key))
                return copy
        raise UnsupportedModelError(
            f"{kind.__name__} {operation.name!r} cannot be copied from its get_config(): {error}"
        ) from error


def hand_over(old: Any, new: Any) -> None:
    """What a layer keeps in a file beside its configuration: what it has learnt of data, and what it derives from that.

    Args:
        old: The layer.
        new: A copy of it, its weights in place.
    """
    base = keras.layers.Layer.load_own_variables
    if type(old).load_own_variables is not base and _same_weights(old, new):
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        new.load_own_variables(store)
    if hasattr(old, "save_assets"):
        with TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)
    for before, after in zip(sublayers(old), sublayers(new), strict=True):
        hand_over(before, after)


def _same_weights(old: Any, new: Any) -> bool:
    pairs = zip(old.weights, new.weights, strict=True)
    return all(before.shape == after.shape and np.array_equal(array(before), array(after)) for before, after in pairs)
