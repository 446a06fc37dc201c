"""Reading a file, translated first where Keras 2 wrote it."""

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
from reprune.keras.legacy.configuration import translated
from reprune.keras.legacy.cudnn import LAYERS, translate_weights

_LONGEST = 300


def load_model(path: str | Path) -> Any:
    """A model from a `.keras` or `.h5` file, also of Keras 2. It is not compiled.

    What Keras 2 wrote differently is put into the words of Keras 3: module names, sequential models that are a list,
    layers inside `Bidirectional`, states handed to recurrent layers. What it computed differently is kept: its
    `hard_sigmoid` is another function than that of Keras 3, its `GRU` resets before the product unless told otherwise,
    and `CuDNNLSTM` and `CuDNNGRU`, which Keras 3 does not have, become `LSTM` and `GRU` with the same weights.

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
        # Keras tells the cause last, after every layer around it.
        cause = str(error).rpartition("Exception encountered: ")[2].strip() or type(error).__name__
        said = cause.splitlines()[0]
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
        text = config.read_text()
        for name in LAYERS:
            if f'"{name}"' in text:
                raise ValueError(f"it has a {name} in the .keras format, whose weights lie elsewhere: save it as .h5")
        config.write_text(json.dumps(translated(json.loads(text))))
        with zipfile.ZipFile(copy, "w") as file:
            for part in (folder / "parts").iterdir():
                file.write(part, part.name)
        return copy
    with h5py.File(path) as file:
        if "model_config" not in file.attrs:
            raise _WeightsOnlyError
        version = file.attrs.get("keras_version")
        if _is_keras_3(version):
            return path
        if str(version).startswith("1."):
            raise ValueError(f"Keras {version} wrote it, which had other names for everything: open it with Keras 2")
    shutil.copyfile(path, copy)
    with h5py.File(copy, "r+") as file:
        file.attrs["model_config"] = json.dumps(translated(json.loads(file.attrs["model_config"])))
        translate_weights(file)
    return copy


def _is_keras_3(version: Any) -> bool:
    return version is not None and int(str(version).split(".")[0]) >= 3


def _convert(path: Path) -> str:
    return (
        "Where it opens (for Keras 2: pip install tf_keras), save what it holds: "
        f"python -c \"import tf_keras; m = tf_keras.models.load_model('{path}'); m.save('model.h5'); "
        "m.save_weights('model.weights.h5')\". Then open model.h5; or, if that fails, build the same architecture from "
        "keras.layers of Keras 3 and call its load_weights('model.weights.h5')."
    )
