"""Layers that hold more than weights and a configuration: adapted to data, or the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import reprune.keras
from reprune.core.plan import Plan
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import RELATIVE, error, outputs, some_plan

L, K, T, F = zoo.L, zoo.K, zoo.T, zoo.F
needs_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="text needs TensorFlow")
RNG = np.random.default_rng(0)


class EndLayer(L.Layer):
    """Adds a loss and returns what it was given; its constructor takes a name alone, as in many tutorials."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.gain = 1.0

    def call(self, truth: Any, found: Any) -> Any:
        self.add_loss(K.mean(K.square(truth - found)))
        return found * self.gain


class Projection(L.Layer):
    """Weights of its own, and a constructor that takes a name alone."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)

    def build(self, shape: Any) -> None:
        self.matrix = self.add_weight(shape=(shape[-1], 2), name="matrix")

    def call(self, x: Any) -> Any:
        return K.matmul(x, self.matrix)


class Table(L.Layer):
    """Holds an array that its configuration does not tell."""

    def __init__(self, table: Any) -> None:
        super().__init__()
        self.table = table

    def call(self, x: Any) -> Any:
        return x * self.table


def adapted() -> Any:
    layer = L.Normalization(axis=-1)
    layer.adapt(RNG.normal(5, 3, size=(64, T, F)).astype("float32"))
    return layer


def bins() -> Any:
    layer = L.Discretization(num_bins=4, output_mode="one_hot")
    layer.adapt(RNG.normal(size=(64,)).astype("float32"))
    return layer


def binned(x: Any) -> Any:
    return L.Dense(2)(L.LSTM(6)(K.cast(bins()(x[..., :1]), "float32")))


def gained(truth: Any, x: Any) -> Any:
    layer = EndLayer(name="end")
    layer.gain = 3.0
    return layer(truth, L.Dense(2)(L.LSTM(6)(x)))


MODELS: dict[str, Callable[[], Any]] = {
    "normalization": lambda: zoo.functional(lambda x: L.Dense(2)(L.LSTM(6)(adapted()(x)))),
    "discretization": lambda: zoo.functional(binned),
    "end-layer": lambda: zoo.functional(gained, (2,), (T, F)),
    "projection": lambda: zoo.functional(lambda x: L.Dense(2)(L.LSTM(6)(Projection(name="own")(x)))),
    "table": lambda: zoo.functional(lambda x: L.Dense(2)(L.LSTM(6)(Table(np.arange(1.0, F + 1, dtype="float32"))(x)))),
}


@pytest.mark.parametrize("name", MODELS)
def test_rebuilt_whole(name: str) -> None:
    model = MODELS[name]()
    if name == "normalization":
        # Its statistics were made random, too.
        model.layers[1].finalize_state()
    x = zoo.inputs_for(model, 4)
    info = reprune.keras.inspect(model, [x])
    plan = some_plan(info.structure, 1)
    small = reprune.keras.apply(model, plan)
    assert error(outputs(reprune.keras.mask(model, plan), x), outputs(small, x)) < RELATIVE
    everything = {name: list(range(layer.units)) for name, layer in plan.structure.layers.items()}
    whole = reprune.keras.apply(model, Plan(plan.structure, everything))
    assert error(outputs(model, x), outputs(whole, x)) < 1e-6
    if name == "end-layer":
        assert len(small.losses) == len(model.losses) == 1
    assert all(layer is not other for layer in model.layers for other in small.layers)


@needs_tensorflow
@pytest.mark.parametrize("mode", ["int", "tf_idf"])
def test_vocabularies(mode: str) -> None:
    tf = pytest.importorskip("tensorflow")
    lines = ["a b c d", "b c e", "a a b"]
    words = L.TextVectorization(max_tokens=9, output_mode=mode, output_sequence_length=6 if mode == "int" else None)
    words.adapt(lines)
    first = [L.Embedding(9, 4, mask_zero=True)] if mode == "int" else [L.Reshape((-1, 1))]
    model = keras.Sequential([words, *first, L.Bidirectional(L.LSTM(6)), L.Dense(1)])
    batches = [tf.constant(["a b", "c e d", "b b", "d d d"])] * 3
    model(batches[0])
    result = reprune.keras.prune(model, batches, 0.5, method="iss-gm")
    masked = reprune.keras.mask(model, result.plan)
    other = tf.constant(["e e a", "b a unseen"])
    assert error(outputs(masked, other), outputs(result.model, other)) < RELATIVE
    if mode == "int":
        # Teaching the original new words does not reach the copy.
        before = outputs(result.model, other)
        words.adapt(["x y z"])
        assert error(before, outputs(result.model, other)) == 0
