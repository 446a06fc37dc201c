"""Keras models that answer like the dense one: the head is refitted, and plan and masked model have it, too."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import reprune
from reprune.core.answers.answers import Sample

L = keras.layers


def test_the_head_is_refitted() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 3))
    both = L.Bidirectional(L.LSTM(6, return_sequences=True))(inputs)
    model = keras.Model(inputs, L.Dense(4, name="head")(L.LSTM(8)(both)))
    head = model.get_layer("head")
    head.kernel.assign(8 * head.kernel)
    rng = np.random.default_rng(0)
    batches = [2 * rng.normal(size=(96, 5, 3)).astype("float32") for _ in range(4)]
    result = reprune.prune(model, batches, 0.7)
    assert {refit.tensor for refit in result.plan.refits} == {"head/kernel", "head/bias"}
    masked = reprune.mask(model, reprune.Plan.from_json(result.plan.to_json()))
    np.testing.assert_allclose(np.asarray(result.model(batches[0])), np.asarray(masked(batches[0])), atol=1e-5)


def test_answers_are_those_of_the_pass_that_observes(monkeypatch: pytest.MonkeyPatch) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((20, 3))
    states, last = L.GRU(4, return_state=True)(inputs)
    model = keras.Model(inputs, {"chances": L.Dense(2, activation="sigmoid")(states), "state": L.Dense(3)(last)})
    batches = [np.random.default_rng(place).normal(size=(6, 20, 3)).astype("float32") for place in range(3)]
    told: list[Any] = []
    answered = Sample.answered
    monkeypatch.setattr(Sample, "answered", lambda sample, outputs: (told.append(outputs), answered(sample, outputs)))
    reprune.calibrate(model, batches, methods=["reconstruct"])
    for batch, outputs in zip(batches, told, strict=True):
        for found, wanted in zip(outputs, keras.tree.flatten(model(batch)), strict=True):
            np.testing.assert_allclose(found, np.asarray(wanted), rtol=1e-5, atol=1e-6)
