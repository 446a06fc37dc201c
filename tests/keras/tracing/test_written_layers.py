"""Layers with weights of their own, such as attention written by hand: their code is followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest

import reprune.keras
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import RELATIVE, error, outputs, some_plan

L, K, T, F = zoo.L, zoo.K, zoo.T, zoo.F
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"


class Weights(L.Layer):
    """A score for every step, and the mean of the steps by it."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], 1), name="kernel")
        self.shift = self.add_weight(shape=(shape[1], 1), name="shift")

    def call(self, x: Any) -> Any:
        return K.sum(x * K.softmax(K.tanh(x @ self.kernel + self.shift), axis=1), axis=1)


class Context(L.Layer):
    """Steps are compared with a vector, in a space of a width of its own."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")
        self.bias = self.add_weight(shape=(4,), name="bias")
        self.vector = self.add_weight(shape=(4,), name="vector")

    def call(self, x: Any) -> Any:
        inner = K.tanh(K.tensordot(x, self.kernel, axes=1) + self.bias)
        scores = K.exp(K.squeeze(K.dot(inner, K.expand_dims(self.vector, -1)), -1))
        return K.einsum("bt,bth->bh", scores / K.sum(scores, axis=1, keepdims=True), x)


class Vectors(L.Layer):
    """Products with vectors, which are held in a dictionary."""

    def build(self, shape: Any) -> None:
        self.vectors = {name: self.add_weight(shape=(shape[-1],), name=name) for name in ("first", "second")}

    def call(self, x: Any) -> Any:
        scores = K.matmul(x, self.vectors["first"]) * K.tanh(K.dot(x, self.vectors["second"]))
        return K.sum(x * K.expand_dims(K.softmax(scores, axis=1), -1), axis=1)


class Scaled(L.Layer):
    """A gain and a shift for every unit; the transposed product of the last step."""

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(shape=(shape[-1],), name="gain")
        self.kernel = self.add_weight(shape=(3, shape[-1]), name="kernel")

    def call(self, x: Any) -> Any:
        return K.matmul((x * self.gain)[:, -1], K.transpose(self.kernel))


class Square(L.Layer):
    """A space as wide as what is read, which goes with the units."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), name="kernel")

    def call(self, x: Any) -> Any:
        return K.max(K.tanh(K.matmul(x, self.kernel)), axis=1)


class Additive(L.Layer):
    """The usual additive attention, in a space as wide as what is read."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), name="kernel")
        self.bias = self.add_weight(shape=(shape[-1],), name="bias")
        self.vector = self.add_weight(shape=(shape[-1],), name="vector")

    def call(self, x: Any) -> Any:
        scores = K.tensordot(K.tanh(K.tensordot(x, self.kernel, 1) + self.bias), self.vector, 1)
        return K.sum(x * K.expand_dims(K.softmax(scores, axis=1), -1), axis=1)


class Ahead(L.Layer):
    """A weight that is one wider than what is read, whatever that is."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1] + 1), name="kernel")

    def call(self, x: Any) -> Any:
        return K.max(K.tanh(K.matmul(x, self.kernel)), axis=1)


class Legacy(L.Layer):
    """Attention as it was written for Keras 2."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], 1), name="kernel")
        self.shift = self.add_weight(shape=(shape[1], 1), name="shift")

    def call(self, x: Any) -> Any:
        old = pytest.importorskip("tensorflow").keras.backend
        scores = old.exp(old.tanh(old.squeeze(old.dot(x, self.kernel) + self.shift, axis=-1)))
        scores /= old.cast(old.sum(scores, axis=1, keepdims=True) + old.epsilon(), old.floatx())
        return old.sum(x * old.expand_dims(scores), axis=1)


class Products(L.Layer):
    """Products with vectors and matrices by TensorFlow's own functions."""

    def build(self, shape: Any) -> None:
        self.vector = self.add_weight(shape=(shape[-1],), name="vector")
        self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")

    def call(self, x: Any) -> Any:
        tf = pytest.importorskip("tensorflow")
        scores = tf.nn.softmax(tf.linalg.matvec(x, self.vector), axis=1)
        return tf.reduce_sum(tf.tensordot(x, self.kernel, axes=1) * scores[..., None], axis=1)


class Last(L.Layer):
    """No weights: two steps beside each other."""

    def call(self, x: Any) -> Any:
        return K.concatenate([x[:, 0], x[:, -1]], axis=-1)


def pooled() -> Any:
    return L.Lambda(lambda x: K.max(x[:, ::-1], axis=1) - x[:, -1], output_shape=(10,))


def model_of(layer: Callable[[], Any]) -> Any:
    def build(x: Any) -> Any:
        return L.Dense(2)(layer()(L.Bidirectional(L.LSTM(5, return_sequences=True), name="rnn")(x)))

    return zoo.functional(build, (T, F))


@pytest.mark.parametrize(
    "layer",
    [Weights, Context, Vectors, Scaled, Square, Additive, Last, pooled, *[Legacy, Products][: 2 * ON_TENSORFLOW]],
)
def test_a_layer_with_weights_of_its_own_is_followed(layer: type[Any]) -> None:
    model = model_of(layer)
    x = zoo.inputs_for(model)
    structure = reprune.keras.inspect(model, [x]).structure
    assert len(structure.prunable) == 2, {name: str(layer.pin) for name, layer in structure.layers.items()}
    plan = some_plan(structure, 1)
    small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
    more = zoo.inputs_for(model, 5, 3)
    assert error(outputs(masked, more), outputs(small, more)) < RELATIVE
    assert small.count_params() < model.count_params()


def test_weights_in_other_sizes_that_depend_on_what_they_read_pin_it() -> None:
    model = model_of(Ahead)
    info = reprune.keras.inspect(model, [zoo.inputs_for(model)])
    assert {pin.reason.split(":")[0] for pin in info.pinned.values()} == {
        "the model cannot be rebuilt with fewer units"
    }


def test_a_pin_names_the_line() -> None:
    def first(x: Any) -> Any:
        half = x[..., :5]
        return half[:, -1]

    model = model_of(lambda: L.Lambda(first))
    (pin, _) = reprune.keras.inspect(model, [zoo.inputs_for(model)]).pinned.values()
    assert "a position that is written into the code" in pin.reason
    assert pin.site.location == f"{__file__}:{first.__code__.co_firstlineno + 1}"


def test_relu_over_many_steps_is_no_leak() -> None:
    """Removed units, if they are many, that read each other through the rehearsal's noise would overflow."""

    def build(x: Any) -> Any:
        return L.Dense(2)(L.SimpleRNN(1600, activation="relu", name="rnn")(x))

    model = zoo.functional(build, (40, F))
    kernel = model.get_layer("rnn").cell.recurrent_kernel
    kernel.assign(kernel / 40)
    info = reprune.keras.inspect(model, [zoo.inputs_for(model)])
    assert info.prunable == ("rnn",)
