"""Configurations of models by Keras 2, in the words of Keras 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from reprune.keras.legacy.activations import hard_sigmoid
from reprune.keras.legacy.cudnn import LAYERS, OPTIONS

Config = dict[str, Any]
_SHAPE = "batch_input_shape"


def translated(config: Any) -> Any:
    """A model's configuration by Keras 2, in the words of Keras 3.

    Raises:
        ValueError: When it asks for what Keras 3 does not have.
    """
    if isinstance(config, list):
        return [translated(part) for part in config]
    if not isinstance(config, dict):
        return config
    # The shapes of Keras 2 are of another form; layers find theirs when the model is put together.
    config = {key: translated(value) for key, value in config.items() if key != "build_config"}
    for key, value in config.items():
        if key in ("activation", "recurrent_activation") and _name_of(value) == "hard_sigmoid":
            config[key] = keras.saving.serialize_keras_object(hard_sigmoid)
        elif key.endswith("_initializer") and isinstance(value, dict):
            # That of TensorFlow 1.
            value.get("config", {}).pop("dtype", None)
    kind = config.get("class_name")
    if kind == "Policy":
        return config["config"]["name"]
    if isinstance(kind, str):
        for change in _CHANGES.get(kind, ()):
            change(config)
        _locate(config)
    return config


def _name_of(function: Any) -> Any:
    """The name of a function, written as such or as an object."""
    return function.get("config") if isinstance(function, dict) else function


def _locate(config: Config) -> None:
    """Say where a layer of Keras is, without which those inside others are not found, and apart, what it was fed."""
    found = getattr(keras.layers, config["class_name"], None)
    if found is None or not isinstance(config.get("config"), dict):
        return
    if "module" not in config:
        config.update(module="keras.layers", registered_name=None)
    shape = config["config"].pop(_SHAPE, None)
    if shape is not None:
        place, key = (config["config"], "batch_shape") if config["class_name"] == "InputLayer" else (config, _SHAPE)
        place[key] = shape


def _functional(config: Config) -> None:
    if "module" in config:
        config["module"] = "keras.src.models.functional"
    for key in ("input_layers", "output_layers"):
        # A single one is not a list in Keras 3.
        ends = config["config"][key]
        config["config"][key] = ends[0] if len(ends) == 1 and isinstance(ends[0], list) else ends


def _sequential(config: Config) -> None:
    # Before 2.2.3 it had no name.
    if isinstance(config["config"], list):
        config["config"] = {"name": "sequential", "layers": config["config"]}
    layers = config["config"]["layers"]
    shape = layers[0].get(_SHAPE) if layers else None
    if shape is not None:
        kind = "int32" if layers[0]["class_name"] == "Embedding" else layers[0]["config"].get("dtype", "float32")
        entry = {"batch_shape": shape, "dtype": kind, "name": f"{layers[0]['config']['name']}_input"}
        layers.insert(0, {"class_name": "InputLayer", "config": entry, "module": "keras.layers"})


def _for_cudnn(config: Config) -> None:
    kind = config["class_name"]
    config.pop("module", None)
    config["class_name"] = LAYERS[kind]
    config["config"] = {**config["config"], **OPTIONS[kind]}


def _gru(config: Config) -> None:
    # Before 2.1.4 there was no choice, and the default of Keras 3 is another one.
    config["config"].setdefault("reset_after", False)


def _attention(config: Config) -> None:
    if config["config"].get("score_mode") == "dot":
        # The default, which Keras 3 takes for the name of a function.
        del config["config"]["score_mode"]


def _batch_normalization(config: Config) -> None:
    if isinstance(config["config"].get("axis"), list):
        (config["config"]["axis"],) = config["config"]["axis"]


def _between_layers(config: Config) -> None:
    raise ValueError(f"it calls a function of TensorFlow between its layers ({config['config'].get('name')!r})")


def _recurrent(config: Config) -> None:
    if config["config"].pop("time_major", False):
        raise ValueError(f"{config['class_name']} {config['config'].get('name')!r} has time first (time_major=True)")
    config["inbound_nodes"] = [_with_states(node) for node in config.get("inbound_nodes", ())]


def _with_states(node: Any) -> Any:
    """A call of a recurrent layer; of several inputs, all but the first are its initial states."""
    if not isinstance(node, list) or len(node) < 2:
        return node
    tensors = [
        {"class_name": "__keras_tensor__", "config": {"shape": [], "dtype": "float32", "keras_history": part[:3]}}
        for part in node
    ]
    return {"args": tensors[:1], "kwargs": {**node[0][3], "initial_state": tensors[1:]}}


_CHANGES: dict[str, tuple[Callable[[Config], None], ...]] = {
    **dict.fromkeys(("LSTM", "SimpleRNN", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), (_recurrent,)),
    "Bidirectional": (_recurrent,),
    "GRU": (_recurrent, _gru),
    "GRUCell": (_gru,),
    **dict.fromkeys(LAYERS, (_for_cudnn, _recurrent)),
    **dict.fromkeys(("Functional", "Model"), (_functional,)),
    "Sequential": (_sequential,),
    "Attention": (_attention,),
    "BatchNormalization": (_batch_normalization,),
    **dict.fromkeys(("TFOpLambda", "SlicingOpLambda"), (_between_layers,)),
}
"""What to do with an object of a class, in order."""
