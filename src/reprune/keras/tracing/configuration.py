"""What a layer was made with, and of which others it is made."""

from __future__ import annotations

import warnings
from types import FunctionType
from typing import Any

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
    return {key: value for key, value in config.items() if key not in without}


def _is_own(module: Any) -> bool:
    return isinstance(module, str) and module.split(".")[0] == "keras"


def sublayers(layer: Any) -> list[Any]:
    """The layers that a layer is made of, the nearest level only."""
    return [part for part in layer._flatten_layers(include_self=False, recursive=False) if part is not layer]


def loose_weights(layer: Any) -> list[str]:
    """Names of the weights that a layer holds outside the layers it is made of."""
    inside = {id(variable) for part in sublayers(layer) for variable in part.weights}
    return [variable.name for variable in layer.weights if id(variable) not in inside]
