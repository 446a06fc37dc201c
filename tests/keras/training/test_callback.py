"""Pruning inside `fit`."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pytest

import reprune.keras
from reprune.core.errors import RecipeError
from reprune.keras.tracing.graph import array
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import RELATIVE, error, outputs

L, T, F = zoo.L, zoo.T, zoo.F


def task(count: int = 32) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, T, F)).astype("float32")
    return x, (x[:, 0, :1] > 0).astype("float32")


def batches(size: int = 8) -> list[tuple[Any, Any]]:
    x, y = task()
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def model() -> Any:
    keras.utils.set_random_seed(0)
    made = keras.Sequential([keras.Input((T, F)), L.Bidirectional(L.LSTM(6), name="both"), L.Dense(1)])
    made.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse", run_eagerly=True)
    return made


class Watcher(keras.callbacks.Callback):
    """Counts the units whose incoming weights are all zero after each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.silent: list[int] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        silent = 0
        for part in (self.model.layers[0].forward_layer, self.model.layers[0].backward_layer):
            stacked = np.concatenate([array(w).reshape(-1, 4, 6) for w in part.weights])
            silent += int((np.abs(stacked).max((0, 1)) == 0).sum())
        self.silent.append(silent)


def test_soft_schedule_silences_and_lets_regrow() -> None:
    trained = model()
    pruning = reprune.keras.PruningCallback(batches(), ratio=0.5, schedule="soft:3", calibration=2)
    watcher = Watcher()
    x, y = task()
    history = trained.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[pruning, watcher])
    # Steps 3 and 6 of 8 silence half of the units; the step after each lets them grow again.
    assert watcher.silent == [0, 0, 6, 0, 0, 6, 0, 0]
    assert history.history["pruned"] == [0.5, 0.5]
    result = pruning.result
    assert result is not None
    assert sum(result.plan.counts().values()) == 6
    masked = reprune.keras.mask(trained, result.plan)
    assert error(outputs(masked, x), outputs(result.model, x)) < RELATIVE
    assert trained.layers[0].forward_layer.units == 6
    result.model.fit(x, y, verbose=0)


@pytest.mark.filterwarnings("ignore::reprune.core.evidence.readings.CalibrationWarning")
def test_once_at_the_end_with_compensation(capsys: pytest.CaptureFixture[str]) -> None:
    trained = model()
    pruning = reprune.keras.PruningCallback(batches(), 0.5, method="reconstruct", schedule="after", calibration=4)
    watcher = Watcher()
    x, y = task()
    trained.fit(x, y, batch_size=8, epochs=1, verbose=1, callbacks=[pruning, watcher])
    assert watcher.silent == [0] * 4
    assert "pruned" in capsys.readouterr().out
    assert pruning.result is not None
    assert pruning.result.plan.folds


def test_refuses_what_it_cannot_use() -> None:
    with pytest.raises(RecipeError, match="only once"):
        reprune.keras.PruningCallback(batch for batch in batches())
    with pytest.raises(RecipeError, match="single tensor"):
        reprune.keras.PruningCallback(task()[0])
    with pytest.raises(RecipeError, match="schedule"):
        reprune.keras.PruningCallback(batches(), schedule="sometimes")


class Interruption(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            raise KeyboardInterrupt


def test_interrupted_training_goes_on_as_if_it_had_not_been() -> None:
    def callback() -> Any:
        return reprune.keras.PruningCallback(batches(), 0.5, schedule="soft:3", calibration=3, seed=1)

    def fit(trained: Any, part: Any, *callbacks: Any) -> None:
        trained.fit(_Batches(part), shuffle=False, epochs=1, verbose=0, callbacks=list(callbacks))

    whole, undisturbed = model(), callback()
    fit(whole, batches(), undisturbed)
    again, first, second = model(), callback(), callback()
    with pytest.raises(KeyboardInterrupt):
        fit(again, batches(), first, Interruption())
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    fit(again, batches()[2:], second)
    assert second.steps == undisturbed.steps == 4
    assert first.result is None
    assert list(second.result.plan.kept.values()) == list(undisturbed.result.plan.kept.values())
    x = task()[0]
    assert error(outputs(undisturbed.result.model, x), outputs(second.result.model, x)) < 1e-6


class _Batches(keras.utils.PyDataset):
    """Batches in their order."""

    def __init__(self, found: list[Any]) -> None:
        super().__init__()
        self.found = found

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> Any:
        return self.found[index]


@pytest.mark.parametrize("form", ["data set", "weights", "several steps", "not built"])
def test_ways_to_fit(form: str) -> None:
    x, y = task()
    trained = model()
    if form == "several steps":
        trained.compile("adam", "mse", steps_per_execution=2)
    if form == "not built":
        trained = keras.Sequential([L.Bidirectional(L.LSTM(6)), L.Dense(1)])
        trained.compile("adam", "mse")
    pruning = reprune.keras.PruningCallback(batches(), 0.5, schedule="soft:3", calibration=2)
    options: dict[str, Any] = {"x": _Batches(batches())}
    if form == "weights":
        options = {"x": x, "y": y, "sample_weight": np.ones(32), "batch_size": 8, "validation_data": (x, y)}
    trained.fit(**options, epochs=2, verbose=0, callbacks=[pruning])
    assert pruning.steps == 8
    assert pruning.result is not None
    assert sum(pruning.result.plan.counts().values()) == 6
    masked = reprune.keras.mask(trained, pruning.result.plan)
    assert error(outputs(masked, x), outputs(pruning.result.model, x)) < RELATIVE
