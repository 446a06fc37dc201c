"""Sizes that are known only when a model runs, and zeros that are as many as its sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from reprune.keras.tracing.batch_zeros import BatchZeros
from reprune.keras.tracing.graph import ModelGraph, array
from reprune.keras.tracing.rules import rule_of
from reprune.keras.tracing.symbolic import followed
from reprune.keras.tracing.tracer import Tracer

K = keras.ops
X = np.random.default_rng(0).normal(size=(3, 2, 4)).astype("float32")
CASES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "zeros for each sequence": (lambda x: K.zeros((K.shape(x)[0], 5)) + x[:, 0, :1], np.repeat(X[:, 0, :1], 5, 1)),
    "zeros of a batch that nobody names": (lambda x: K.zeros([None, 4]) + x[:, 1], X[:, 1]),
    "zeros for each row": (
        lambda x: K.zeros((K.shape(K.reshape(x, (-1, 4)))[0], 4)) + K.reshape(x, (-1, 4)),
        X.reshape(6, 4),
    ),
    "whole numbers": (lambda x: K.zeros((K.shape(x)[0], 1), "int32") + K.cast(x[:, 0] > 0, "int32"), X[:, 0] > 0),
    "the size of something else": (lambda x: K.reshape(x, (-1, K.shape(X)[2])), X.reshape(6, 4)),
    "known sizes": (lambda x: K.zeros((2, 4)) + x, X),
    "a single size": (lambda x: K.zeros(4) + x, X),
    "a shape computed with": (
        lambda x: K.reshape(x, ((K.shape(x)[0] * 2 - 1) // 1 + 1, K.shape(x)[2])),
        X.reshape(6, 4),
    ),
    "computed from the right": (lambda x: K.reshape(x, (8 * (1 + K.shape(x)[0] - 1) // 4, 4)), X.reshape(6, 4)),
    "an axis that is left": (lambda x: K.reshape(x, (-1, 8)), X.reshape(3, 8)),
    "as many as there are": (lambda x: K.reshape(x, [K.shape(x)[0], 8]), X.reshape(3, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_sizes_are_those_of_what_the_model_is_run_on(name: str) -> None:
    build, expected = CASES[name]
    inputs = keras.Input((2, 4))
    plain = keras.ops.zeros, keras.src.ops.zeros, keras.ops.shape, keras.ops.reshape
    with followed(inputs, keras.layers.ReLU()):
        model = keras.Model(inputs, build(inputs))
    assert (keras.ops.zeros, keras.src.ops.zeros, keras.ops.shape, keras.ops.reshape) == plain
    found = array(model(X))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == ("int32" if name == "whole numbers" else "float32")


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda x: K.zeros((2 * K.shape(x)[0], 3)), ValueError),
        (lambda x: K.zeros((K.shape(x)[0], None)), ValueError),
        (lambda x: K.zeros((4, K.shape(x)[0])), ValueError),
        (lambda x: K.zeros(K.shape(x)[0]), ValueError),
        (lambda x: x * int(K.shape(x)[0]), TypeError),
    ],
)
def test_other_uses_are_told(build: Callable[[Any], Any], error: type[Exception]) -> None:
    inputs = keras.Input((2, 4))
    with followed(inputs, keras.layers.ReLU()), pytest.raises(error):
        build(inputs)


def test_zeros_are_named_and_kept() -> None:
    inputs = keras.Input((2, 4))
    with followed(inputs, keras.layers.ReLU()):
        made = [K.zeros((K.shape(inputs)[0], width, 2)) for width in (3, 5)]
    assert [made_of(zeros) for zeros in made] == [("zeros_0", (3, 2)), ("zeros_1", (5, 2))]
    assert [zeros.shape for zeros in made] == [(None, 3, 2), (None, 5, 2)]
    again = BatchZeros.from_config(BatchZeros([3], dtype="float64", name="own").get_config())
    assert (again.sizes, again.name, again(X).shape, again.compute_dtype) == ((3,), "own", (3, 3), "float64")


def made_of(zeros: Any) -> tuple[str, tuple[int, ...]]:
    layer = zeros._keras_history.operation
    return layer.name, layer.sizes


def test_zeros_that_are_added_to_units_are_as_many() -> None:
    inputs = keras.Input(batch_shape=(None, 2, 4))
    with followed(inputs, keras.layers.ReLU()):
        model = keras.Model(inputs, K.zeros((K.shape(inputs)[0], 2, 4)) + inputs)
    tracer = Tracer(ModelGraph(model), rule_of, [0])
    tracer.run([X])
    sizes = {key: tracer.couplings.roots(labels).tolist() for key, labels in tracer.records.sizes.items()}
    assert sizes["zeros_0", ("sizes", 1)] == [1, 2, 3, 4]
