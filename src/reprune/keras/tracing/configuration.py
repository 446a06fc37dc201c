"""What a layer was made with, and of which others it is made."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import keras

from reprune.core.errors import UnsupportedModelError


def made_with(layer: Any, *without: str) -> dict[str, Any]:
    """Options that a layer was made with, but `without`; functions and objects not of Keras as they are, not by name.

    Raises:
        UnsupportedModelError: When the layer has no `get_config`.
    """
    try:
        with warnings.catch_warnings():
            # Lambdas among the activations: nothing is written to disk here.
            warnings.simplefilter("ignore", UserWarning)
            config = layer.get_config()
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"{type(layer).__name__} {layer.name!r} cannot be copied: give it get_config()."
        ) from error
    for key, value in config.items():
        held = getattr(layer, key, None)
        foreign = isinstance(value, dict) and "class_name" in value and not _is_own(value.get("module"))
        if held is not None and (foreign or (isinstance(held, FunctionType) and not _is_own(held.__module__))):
            config[key] = held
    return {key: _unbuilt(value) for key, value in config.items() if key not in without}


def _unbuilt(config: Any) -> Any:
    """A configuration in which layers inside are not built yet: on what shapes, the new layer knows."""
    if isinstance(config, dict) and "build_config" in config:
        return {key: _unbuilt(part) for key, part in config.items() if key != "build_config"}
    return config


def _is_own(module: Any) -> bool:
    return isinstance(module, str) and module.split(".")[0] == "keras"


def replaced(config: Any, place: Sequence[str | int], value: Any) -> Any:
    """A configuration with another value at a place: keys of dictionaries, and positions in lists.

    Example:
        >>> replaced({"name": "rnn", "sizes": [3, 4]}, ("sizes", 1), 2)
        {'name': 'rnn', 'sizes': [3, 2]}
    """
    if not place:
        return value
    key, *rest = place
    if isinstance(config, dict):
        return {**config, key: replaced(config[key], rest, value)}
    parts = [config] if isinstance(config, int) else list(config)
    parts[int(key)] = replaced(parts[int(key)], rest, value)
    return parts if isinstance(config, list) else tuple(parts)


def sublayers(layer: Any) -> list[Any]:
    """The layers that a layer is made of, the nearest level only."""
    return [part for part in layer._flatten_layers(include_self=False, recursive=False) if part is not layer]


def loose_weights(layer: Any) -> list[str]:
    """Names of the weights that a layer holds outside the layers it is made of."""
    inside = {id(variable) for part in sublayers(layer) for variable in part.weights}
    return [variable.name for variable in layer.weights if id(variable) not in inside]


def is_cell(layer: Any) -> bool:
    """Whether a layer does one step of a recurrence: Keras asks of such a one how wide its states are."""
    return hasattr(layer, "state_size") and not isinstance(layer, keras.layers.RNN)
