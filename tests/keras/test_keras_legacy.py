"""Files of older versions: what can be loaded is pruned, what cannot says how to convert it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import h5py
import keras
import pytest

import reprune.keras
from reprune.core.errors import UnsupportedModelError

from . import keras_zoo as zoo
from .keras_helpers import RELATIVE, error, outputs, some_plan

L, T, F = zoo.L, zoo.T, zoo.F


def as_keras_2(config: Any, time_major: bool) -> Any:
    """The same configuration in the words of Keras 2."""
    if isinstance(config, list):
        return [as_keras_2(part, time_major) for part in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return config["config"]["name"]
    new = {key: as_keras_2(value, time_major) for key, value in config.items() if key not in ("module", "build_config")}
    new.pop("registered_name", None)
    if "batch_shape" in new:
        new["batch_input_shape"] = new.pop("batch_shape")
    if new.get("class_name") in ("LSTM", "GRU"):
        new["config"]["time_major"] = time_major
        new["config"].pop("use_cudnn", None)
    return new


def written(model: Any, path: Path, time_major: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(str(path))
    with h5py.File(path, "r+") as file:
        config = as_keras_2(json.loads(file.attrs["model_config"]), time_major)
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.15.0"
    return path


@pytest.mark.parametrize("form", ["sequential", "functional"])
def test_h5_of_keras_2(form: str, tmp_path: Path) -> None:
    if form == "sequential":
        model = zoo.sequential(zoo.both(6), L.GRU(5), L.Dense(2))
    else:
        model = zoo.functional(lambda x: L.Dense(2)(L.Bidirectional(L.LSTM(6))(L.Dropout(0.1)(L.Dense(4)(x)))))
    path = written(model, tmp_path / "model.h5")
    if form == "sequential":
        # What Keras itself makes of it: the reason for a function of our own.
        with pytest.raises(Exception, match="time_major"):
            keras.models.load_model(str(path), compile=False)
    loaded = reprune.keras.load_model(path)
    x = zoo.inputs_for(model)
    assert error(outputs(model, x), outputs(loaded, x)) < RELATIVE
    plan = some_plan(reprune.keras.trace(loaded, x))
    small, masked = reprune.keras.apply(loaded, plan), reprune.keras.mask(loaded, plan)
    assert error(outputs(masked, x), outputs(small, x)) < RELATIVE


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
        reprune.keras.load_model(written(model, tmp_path / "first.h5", time_major=True))
    (tmp_path / "damaged.h5").write_bytes(b"nonsense")
    with pytest.raises(UnsupportedModelError, match=r"cannot be opened with Keras 3[^$]*tf_keras"):
        reprune.keras.load_model(tmp_path / "damaged.h5")
    with pytest.raises(UnsupportedModelError, match="does not exist"):
        reprune.keras.load_model(tmp_path / "nowhere.h5")
