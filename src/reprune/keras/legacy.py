"""Models from files, those of Keras 2 included where Keras 3 can take them."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras

from reprune.core.errors import UnsupportedModelError

_RECURRENT = ("LSTM", "GRU", "SimpleRNN", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "Bidirectional")
_LONGEST = 300


def load_model(path: str | Path) -> Any:
    """A model from a `.keras` or `.h5` file, also of Keras 2. It is not compiled.

    What Keras 2 wrote differently is put into the words of Keras 3: its module names, the option `time_major`, states
    handed to recurrent layers.

    Args:
        path: The file.

    Raises:
        UnsupportedModelError: When the file cannot be opened; the message tells how to convert it.

    Example:
        >>> model = reprune.keras.load_model("trained.h5")              # doctest: +SKIP
        >>> small = reprune.prune(model, batches, ratio=0.5).model      # doctest: +SKIP
    """
    path = Path(path)
    if not path.exists():
        raise UnsupportedModelError(f"{path} does not exist.")
    if path.is_dir():
        raise UnsupportedModelError(
            f"{path} is a folder: a SavedModel holds computations, not layers, so there is nothing that could be made "
            f"smaller. {_convert(path)}"
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            return keras.models.load_model(str(_readable(path, Path(folder))), compile=False)
    except _WeightsOnlyError:
        raise UnsupportedModelError(
            f"{path} holds weights only, no layers: build the model as it was built, and call its "
            f"load_weights({path.name!r})."
        ) from None
    except Exception as error:
        # Whatever a file of another version, or a class that is not known, leads to.
        said = str(error).strip().splitlines()[0]
        said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]} …"
        raise UnsupportedModelError(
            f"{path} cannot be opened with Keras {keras.__version__}: {said}. Custom classes must be registered first "
            f"(keras.saving.register_keras_serializable). {_convert(path)}"
        ) from error


class _WeightsOnlyError(Exception):
    pass


def _readable(path: Path, folder: Path) -> Path:
    """The file itself, or a copy in the folder of one of Keras 2, its configuration translated."""
    copy = folder / path.name
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if _is_keras_3(json.loads(file.read("metadata.json")).get("keras_version")):
                return path
            file.extractall(folder / "parts")
        config = folder / "parts" / "config.json"
        config.write_text(json.dumps(translated(json.loads(config.read_text()))))
        with zipfile.ZipFile(copy, "w") as file:
            for part in (folder / "parts").iterdir():
                file.write(part, part.name)
        return copy
    with h5py.File(path) as file:
        if "model_config" not in file.attrs:
            raise _WeightsOnlyError
        if _is_keras_3(file.attrs.get("keras_version")):
            return path
    shutil.copyfile(path, copy)
    with h5py.File(copy, "r+") as file:
        file.attrs["model_config"] = json.dumps(translated(json.loads(file.attrs["model_config"])))
    return copy


def _is_keras_3(version: Any) -> bool:
    return version is not None and int(str(version).split(".")[0]) >= 3


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
    kind = config.get("class_name")
    if kind == "Policy":
        return config["config"]["name"]
    if kind in ("Functional", "Model"):
        config.update({"module": "keras.src.models.functional"} if "module" in config else {})
        for key in ("input_layers", "output_layers"):
            # A single one is not a list in Keras 3.
            ends = config["config"][key]
            config["config"][key] = ends[0] if len(ends) == 1 and isinstance(ends[0], list) else ends
    if kind == "Attention" and config["config"].get("score_mode") == "dot":
        # The default, which Keras 3 takes for the name of a function.
        del config["config"]["score_mode"]
    if kind == "BatchNormalization" and isinstance(config["config"].get("axis"), list):
        (config["config"]["axis"],) = config["config"]["axis"]
    if kind in ("TFOpLambda", "SlicingOpLambda"):
        raise ValueError(f"it calls a function of TensorFlow between its layers ({config['config'].get('name')!r})")
    if kind in _RECURRENT:
        if config["config"].pop("time_major", False):
            raise ValueError(f"{kind} {config['config'].get('name')!r} has time first (time_major=True)")
        config["inbound_nodes"] = [_with_states(node) for node in config.get("inbound_nodes", ())]
    return config


def _with_states(node: Any) -> Any:
    """A call of a recurrent layer; of several inputs, all but the first are its initial states."""
    if not isinstance(node, list) or len(node) < 2:
        return node
    tensors = [
        {"class_name": "__keras_tensor__", "config": {"shape": [], "dtype": "float32", "keras_history": part[:3]}}
        for part in node
    ]
    return {"args": tensors[:1], "kwargs": {**node[0][3], "initial_state": tensors[1:]}}


def _convert(path: Path) -> str:
    return (
        "Where it opens (for Keras 2: pip install tf_keras), save what it holds: "
        f"python -c \"import tf_keras; m = tf_keras.models.load_model('{path}'); m.save('model.h5'); "
        "m.save_weights('model.weights.h5')\". Then open model.h5; or, if that fails, build the same architecture from "
        "keras.layers of Keras 3 and call its load_weights('model.weights.h5')."
    )
