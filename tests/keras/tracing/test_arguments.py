"""The paper's model as a class whose `call` takes several arguments: pruned, it is called the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import reprune
from reprune.core.errors import UnsupportedModelError
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import RELATIVE, error, outputs

L, K, T, F, CLASSES = zoo.L, zoo.K, zoo.T, zoo.F, 4


class Paper(keras.Model):
    """Bidirectional LSTM, LSTM, sigmoid over the classes, on padded frames."""

    def __init__(self) -> None:
        super().__init__(name="paper")
        self.both = L.Bidirectional(L.LSTM(6, return_sequences=True))
        self.top = L.LSTM(8)
        self.head = L.Dense(CLASSES, activation="sigmoid")

    def call(self, frames: Any, lengths: Any, training: bool = False) -> Any:
        steps = K.cumsum(K.ones_like(frames[..., 0]), axis=1)
        mask = steps <= K.cast(lengths, steps.dtype)[:, None]
        h = self.both(frames, mask=mask, training=training)
        return self.head(self.top(h, mask=mask, training=training))


class Translator(keras.Model):
    """States beside a sequence, as a nest of tensors."""

    def __init__(self) -> None:
        super().__init__(name="translator")
        self.start = L.Dense(5)
        self.top = L.LSTM(5)
        self.head = L.Dense(CLASSES)

    def call(self, frames: Any, states: Any) -> Any:
        return self.head(self.top(frames, initial_state=[self.start(state) for state in states]))


def batch(seed: int = 0, size: int = 8, steps: int = T) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, steps + 1, size=size).astype("int32")
    return rng.normal(size=(size, steps, F)).astype("float32"), lengths


def paper() -> Any:
    model = Paper()
    model(*batch())
    return zoo.randomise(model)


FORMS: dict[str, Any] = {
    "tuple": (lambda x, n: (x, n), None),
    "names": (lambda x, n: {"lengths": n, "frames": x}, None),
    "positions": (lambda x, n: (x, n, "labels"), lambda model, b: model(b[0], b[1], training=False)),
    "both": (lambda x, n: (x, n, "labels"), lambda model, b: model(b[0], lengths=b[1])),
}


@pytest.mark.parametrize("form", FORMS)
def test_pruned_equals_masked(form: str, tmp_path: Path) -> None:
    shape, forward = FORMS[form]
    model = paper()
    result = reprune.prune(model, [shape(*batch(seed)) for seed in range(4)], ratio=0.5, forward=forward)
    small, masked = result.model, reprune.mask(model, result.plan)
    frames, lengths = batch(9, 5, T + 3)
    expected = [np.array(masked(frames, lengths))]
    assert error(expected, [np.array(small(frames, lengths))]) < RELATIVE
    assert error(expected, [np.array(small(lengths=lengths, frames=frames))]) < RELATIVE
    assert error(expected, [np.array(small(frames, lengths=lengths, training=False))]) < RELATIVE
    assert error([np.array(model(frames, lengths))], expected) > 1e-4
    assert sum(result.plan.counts().values()) == 10
    assert [spec.name for spec in small.inputs] == ["frames", "lengths"]


def test_saved_loaded_and_pruned_again(tmp_path: Path) -> None:
    model, batches = paper(), [batch(seed) for seed in range(4)]
    result = reprune.prune(model, batches, ratio=0.5)
    result.model.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    expected = [np.array(result.model(*batch()))]
    assert error(expected, [np.array(again(*batch()))]) < 1e-6
    result.save(tmp_path / "out")
    fresh = paper()
    with pytest.raises(UnsupportedModelError, match=r"reprune\.inspect\(model, \[batch\]\)"):
        reprune.load(fresh, tmp_path / "out")
    reprune.inspect(fresh, [batch()])
    assert error(expected, [np.array(reprune.load(fresh, tmp_path / "out")(*batch()))]) < 1e-6
    twice = reprune.prune(result.model, [list(b) for b in batches], ratio=0.3, verify=False).model
    assert twice.count_params() < result.model.count_params()
    assert np.array(twice(*batch())).shape == (8, CLASSES)


def test_nested_arguments() -> None:
    model = Translator()
    rng = np.random.default_rng(0)
    x, states = batch()[0], [rng.normal(size=(8, 2)).astype("float32") for _ in range(2)]
    model(x, states)
    zoo.randomise(model)
    result = reprune.prune(model, [(x, states)], ratio=0.5, method="magnitude")
    masked = reprune.mask(model, result.plan)
    assert error(outputs(masked, [x, states]), [np.array(result.model(x, states))]) < RELATIVE


def test_what_would_be_built_in_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="lengths=5, which is no tensor"):
        reprune.plan(paper(), [batch()], forward=lambda model, b: model(b[0], 5))
