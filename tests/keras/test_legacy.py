"""Files of older versions: what can be loaded is pruned, what cannot says how to convert it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import reprune.keras
from reprune.core.errors import UnsupportedModelError
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import RELATIVE, error, outputs, some_plan

L, T, F = zoo.L, zoo.T, zoo.F
KERAS_2 = Path(__file__).parent / "keras_2"


def of_keras_2(model: Any, path: Path, layer: str, **options: Any) -> Path:
    """An `.h5` file that says it is of Keras 2, with options of a layer that only Keras 2 had."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(str(path))
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        next(part for part in config["config"]["layers"] if part["class_name"] == layer)["config"].update(options)
        file.attrs.update({"model_config": json.dumps(config), "keras_version": "2.15.0"})
    return path


@pytest.mark.parametrize(
    "file", ["chain.h5", "chain.keras", "states.h5", "states.keras", "hard.h5", "hard.keras", "cudnn.h5"]
)
def test_files_of_keras_2(file: str, tmp_path: Path) -> None:
    """Files that Keras 2 wrote, made by `keras_2/make.py`, and what it computed with them."""
    expected = np.load(KERAS_2 / "outputs.npz")
    x, answers = expected["x"], [expected[file.split(".")[0]]]
    # What Keras itself makes of it: the reason for a function of our own.
    with pytest.raises(Exception, match=r"time_major|expects 1 input|Could not (locate|deserialize)|differ"):
        assert error(answers, outputs(keras.models.load_model(str(KERAS_2 / file), compile=False), x)) < 1e-3, "differ"
    loaded = reprune.keras.load_model(KERAS_2 / file)
    assert error(answers, outputs(loaded, x)) < RELATIVE
    structure = reprune.keras.trace(loaded, x)
    assert not any(layer.pin for layer in structure.layers.values())
    plan = some_plan(structure)
    small, masked = reprune.keras.apply(loaded, plan), reprune.keras.mask(loaded, plan)
    assert error(outputs(masked, x), outputs(small, x)) < RELATIVE
    small.save(tmp_path / "small.keras")
    assert error(outputs(small, x), outputs(keras.models.load_model(tmp_path / "small.keras"), x)) < 1e-6


def old(layer: Any, *without: str) -> dict[str, Any]:
    """A layer as Keras wrote it before 2.3: no modules, the first one of a model with the shape of its input."""
    config = {key: value for key, value in layer.get_config().items() if key not in ("dtype", *without)}
    if isinstance(layer, L.Bidirectional):
        config.pop("backward_layer", None)
        config["layer"] = old(layer.forward_layer)
    return {"class_name": type(layer).__name__, "config": config}


def test_before_version_2_3(tmp_path: Path) -> None:
    """A sequential model that is a list, layers in others without their modules, a GRU that could not be chosen."""
    layers = [
        L.Embedding(9, 3),
        L.Bidirectional(L.LSTM(4, return_sequences=True)),
        L.GRU(5, reset_after=False),
        L.Dense(2),
    ]
    model = zoo.randomise(keras.Sequential([keras.Input((T,), dtype="int32"), *layers]))
    path = tmp_path / "old.h5"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(str(path))
    found = [old(layer, "reset_after") for layer in layers]
    found[0]["config"]["batch_input_shape"] = [None, T]
    found[1]["config"]["layer"]["config"]["batch_input_shape"] = [None, T, 3]
    with h5py.File(path, "r+") as file:
        config = {"class_name": "Sequential", "config": found}
        file.attrs.update({"model_config": json.dumps(config), "keras_version": "2.0.8"})
    x = np.random.default_rng(0).integers(0, 9, size=(4, T))
    assert error(outputs(model, x), outputs(reprune.keras.load_model(path), x)) < 1e-6


def test_weights_of_keras_2() -> None:
    """What the errors advise when layers cannot be read: build the model anew and load its weights."""
    with pytest.raises(UnsupportedModelError, match=r"weights only[^$]*load_weights\('chain.weights.h5'\)"):
        reprune.keras.load_model(KERAS_2 / "chain.weights.h5")
    layers = [
        L.Bidirectional(L.LSTM(4, return_sequences=True)),
        L.GRU(5, return_sequences=True, reset_after=False),
        L.BatchNormalization(),
        L.SimpleRNN(4),
        L.Dense(2),
    ]
    model = keras.Sequential([keras.Input((5, 3)), *layers])
    model.load_weights(KERAS_2 / "chain.weights.h5")
    expected = np.load(KERAS_2 / "outputs.npz")
    assert error([expected["chain"]], outputs(model, expected["x"])) < RELATIVE


def test_keras_files(tmp_path: Path) -> None:
    model = zoo.sequential(L.LSTM(6), L.Dense(2))
    model.save(tmp_path / "model.keras")
    x = zoo.inputs_for(model)
    assert error(outputs(model, x), outputs(reprune.keras.load_model(tmp_path / "model.keras"), x)) == 0


def test_what_cannot_be_loaded_says_how_to_convert(tmp_path: Path) -> None:
    model = zoo.sequential(L.LSTM(6), L.Dense(2))
    model.export(tmp_path / "saved", verbose=False)
    assert (tmp_path / "saved" / "saved_model.pb").exists()
    with pytest.raises(UnsupportedModelError, match=r"SavedModel holds computations[^$]*tf_keras[^$]*load_weights"):
        reprune.keras.load_model(tmp_path / "saved")
    with pytest.raises(UnsupportedModelError, match=r"time first[^$]*load_weights"):
        reprune.keras.load_model(of_keras_2(model, tmp_path / "first.h5", "LSTM", time_major=True))
    with pytest.raises(UnsupportedModelError, match="Lambda") as found:
        reprune.keras.load_model(of_keras_2(model, tmp_path / "own.h5", "LSTM", activation="Lambda" * 1000))
    assert len(str(found.value)) < 1500
    (tmp_path / "damaged.h5").write_bytes(b"nonsense")
    with pytest.raises(UnsupportedModelError, match=r"cannot be opened with Keras 3[^$]*tf_keras"):
        reprune.keras.load_model(tmp_path / "damaged.h5")
    with pytest.raises(UnsupportedModelError, match="does not exist"):
        reprune.keras.load_model(tmp_path / "nowhere.h5")
