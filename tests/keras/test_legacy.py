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


@pytest.mark.parametrize("name", ["chain", "states"])
@pytest.mark.parametrize("form", ["h5", "keras"])
def test_files_of_keras_2(name: str, form: str) -> None:
    """Files that Keras 2 wrote, made by `keras_2/make.py`, and what it computed with them."""
    path, expected = KERAS_2 / f"{name}.{form}", np.load(KERAS_2 / "outputs.npz")
    # What Keras itself makes of it: the reason for a function of our own.
    with pytest.raises(Exception, match=r"time_major|expects 1 input|Could not locate class"):
        keras.models.load_model(str(path), compile=False)
    loaded = reprune.keras.load_model(path)
    x = expected["x"]
    assert error([expected[name]], outputs(loaded, x)) < RELATIVE
    structure = reprune.keras.trace(loaded, x)
    assert not any(layer.pin for layer in structure.layers.values())
    plan = some_plan(structure)
    small, masked = reprune.keras.apply(loaded, plan), reprune.keras.mask(loaded, plan)
    assert error(outputs(masked, x), outputs(small, x)) < RELATIVE


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
