"""A small Keras model that learns in `fit` from labels and a dense model's answers: its loss, and what it changes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from reprune.core.answers.divergence import apart
from reprune.keras import Taught
from reprune.keras.tracing.graph import array


def classifier(units: int, seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5, 3))
    return keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(keras.layers.GRU(units)(inputs)))


def test_the_loss_is_shared_and_the_small_model_learns() -> None:
    small, dense = classifier(4, 0), classifier(8, 1)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 5, 3)).astype("float32"), rng.integers(0, 4, 32)
    taught = Taught(small, dense, x, share=0.25)
    taught.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", jit_compile=False)
    own, wanted = array(small(x)), array(dense(x))
    labels = -np.log(own[np.arange(32), y]).mean()
    expected = 0.75 * labels + 0.25 * float(apart(own, wanted, "kl"))
    held = [array(weight) for weight in dense.weights]
    history = taught.fit(x, y, batch_size=32, epochs=12, verbose=0).history["loss"]
    assert history[0] == pytest.approx(expected, rel=1e-4)
    assert history[-1] < history[0]
    assert all(np.array_equal(array(weight), value) for weight, value in zip(dense.weights, held, strict=True))
