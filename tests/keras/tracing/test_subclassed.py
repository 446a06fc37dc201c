"""Subclassed models as people write them: lists of layers, loops, functions of TensorFlow; or the reason why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import reprune.keras
from reprune.core.errors import UnsupportedModelError, VerificationError
from reprune.keras.tracing.graph import graph_of
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import RELATIVE, error, outputs, some_plan

L, K, T, F = zoo.L, zoo.K, zoo.T, zoo.F
tf = pytest.importorskip("tensorflow")
needs_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the backend is another one")


class Whole(keras.Model):
    """A model made of named layers and a function that wires them."""

    def __init__(self, wire: Callable[..., Any], **layers: Any) -> None:
        super().__init__(name="whole")
        self.parts = layers
        self.wire = wire

    def call(self, x: Any, training: bool = False) -> Any:
        return self.wire(x, **self.parts)


def flattened(x: Any, rnn: Any, head: Any) -> Any:
    return head(L.Flatten()(rnn(x)))


def stacked(x: Any, rnns: Any, heads: Any) -> Any:
    for rnn in rnns:
        x = rnn(x)
    return {name: head(x[:, -1, :]) for name, head in heads.items()}


def loop_from_zeros(x: Any, cell: Any, head: Any) -> Any:
    h = K.zeros((K.shape(x)[0], 5))
    for step in range(x.shape[1]):
        h, _ = cell(x[:, step], [h])
    return head(h)


def attentive_decoder(x: Any, encoder: Any, query: Any, cell: Any, head: Any) -> Any:
    h = encoder(x)
    state, found = cell.get_initial_state(batch_size=K.shape(x)[0]), []
    out = K.zeros((K.shape(x)[0], 2))
    for _ in range(3):
        scores = K.softmax(K.sum(h * K.expand_dims(query(state[0]), 1), axis=-1), axis=1)
        context = K.sum(h * K.expand_dims(scores, -1), axis=1)
        _, state = cell(K.concatenate([out, context], axis=-1), state)
        out = head(state[0])
        found.append(out)
    return K.stack(found, axis=1)


def of_tensorflow(x: Any, both: Any, other: Any, head: Any) -> Any:
    h, g = both(x), other(tf.reverse(x, axis=[1]))
    last = tf.gather(g, tf.argmax(x[:, :, 0], axis=1), axis=1, batch_dims=1)
    length = tf.norm(h[:, 0], axis=-1, keepdims=True)
    pooled = tf.concat([tf.reduce_mean(h, axis=1), tf.math.reduce_max(g, 1), h[:, -1, :], last, length], axis=-1)
    return head(tf.nn.relu(pooled) + tf.where(pooled > 0.1, tf.zeros_like(pooled), tf.square(pooled)))


def loop_of_tensorflow(x: Any, cell: Any, head: Any) -> Any:
    state = [tf.zeros([tf.shape(x)[0], 5]), tf.zeros((tf.shape(x)[0], 5))]
    found = []
    for step in tf.unstack(x, axis=1):
        out, state = cell(step, state)
        found.append(out)
    return head(tf.reshape(tf.stack(found, axis=1), [-1, T * 5]))


class PerNode(L.Layer):
    """One LSTM over every node of a graph: batch × time × nodes × features, with sizes computed from the shape."""

    def __init__(self, how: str, **options: Any) -> None:
        super().__init__(**options)
        self.rnn, self.head, self.how = L.LSTM(6), L.Dense(3), how

    def call(self, x: Any) -> Any:
        n, b, t, f = K.shape(K.transpose(x, [2, 0, 1, 3]))
        rows = b * n if self.how == "product" else (n - 1) * b + b
        flat = K.reshape(K.transpose(x, [2, 0, 1, 3]), (rows, t, f))
        return K.transpose(K.reshape(self.head(self.rnn(flat)), (n, b, 3)), [1, 2, 0])


@pytest.mark.parametrize("how", ["product", "sum"])
def test_sizes_computed_from_a_shape(how: str) -> None:
    model = zoo.functional(lambda x: PerNode(how, name="nodes")(x), (T, 3, F))
    x = zoo.inputs_for(model, 4)
    info = reprune.keras.inspect(model, [x])
    assert not info.pinned
    plan = some_plan(info.structure, 1)
    small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
    assert error(outputs(masked, x), outputs(small, x)) < RELATIVE
    assert error(outputs(masked, x[:3]), outputs(small, x[:3])) < RELATIVE


class Numbered(L.Layer):
    """Needs the number of sequences for something else than a shape."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rnn, self.head = L.LSTM(6), L.Dense(3)

    def call(self, x: Any) -> Any:
        return self.head(self.rnn(x)) + K.expand_dims(K.cast(K.arange(K.shape(x)[0]), "float32"), 1)


def test_what_cannot_be_followed_is_told_with_its_line() -> None:
    model = zoo.functional(lambda x: Numbered(name="numbered")(L.GRU(4, return_sequences=True, name="before")(x)))
    structure = reprune.keras.trace(model, zoo.inputs_for(model))
    for layer in structure.layers.values():
        assert layer.pin is not None
        assert "a Numbered, whose code cannot be followed" in layer.pin.reason
        assert Path(__file__).name in layer.pin.site.location


MODELS: dict[str, Callable[[], Any]] = {
    "flattened": lambda: Whole(flattened, rnn=zoo.lstm(6), head=L.Dense(2)),
    "lists-and-dicts": lambda: Whole(
        stacked, rnns=[zoo.lstm(6), zoo.both(4)], heads={"a": L.Dense(2), "b": L.Dense(1)}
    ),
    "loop-from-zeros": lambda: Whole(loop_from_zeros, cell=L.GRUCell(5), head=L.Dense(2)),
    "attentive-decoder": lambda: Whole(
        attentive_decoder, encoder=zoo.lstm(6), query=L.Dense(6), cell=L.LSTMCell(5), head=L.Dense(2)
    ),
}
OF_TENSORFLOW: dict[str, Callable[[], Any]] = {
    "functions": lambda: Whole(of_tensorflow, both=zoo.both(4), other=zoo.lstm(5), head=L.Dense(2)),
    "loop": lambda: Whole(loop_of_tensorflow, cell=L.LSTMCell(5), head=L.Dense(2)),
}


def check(model: Any, tmp_path: Path) -> None:
    zoo.called(model)
    x = np.random.default_rng(0).normal(size=(4, T, F)).astype("float32")
    whole = outputs(model, x)
    info = reprune.keras.inspect(model, [x])
    assert not info.pinned
    plan = some_plan(info.structure, 1)
    small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
    assert error(outputs(masked, x), outputs(small, x)) < RELATIVE
    assert error(whole, outputs(masked, x)) > 1e-4
    # Against the model's own code, with the columns of the removed units set to zero in it.
    for own, other in zip(graph_of(model).weights().values(), graph_of(masked).weights().values(), strict=True):
        own.assign(other)
    assert error(outputs(model, x[:3]), outputs(small, x[:3])) < RELATIVE
    small.save(tmp_path / "small.keras")
    assert error(outputs(small, x), outputs(keras.models.load_model(tmp_path / "small.keras"), x)) < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_followed(name: str, tmp_path: Path) -> None:
    check(MODELS[name](), tmp_path)


@needs_tensorflow
@pytest.mark.parametrize("name", OF_TENSORFLOW)
def test_functions_of_tensorflow(name: str, tmp_path: Path) -> None:
    check(OF_TENSORFLOW[name](), tmp_path)
    with pytest.raises(ValueError, match="KerasTensor cannot be used"):
        tf.reduce_mean(keras.Input((3,)))


@needs_tensorflow
def test_call_behind_a_tf_function() -> None:
    class Decorated(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = L.GRU(6), L.Dense(2)
            # Otherwise Keras traces the function before there are weights, and the model never looks at them.
            self.rnn.build((None, T, F))
            self.head.build((None, 6))

        @tf.function  # type: ignore[untyped-decorator, unused-ignore]
        def call(self, x: Any) -> Any:
            return self.head(self.rnn(x))

    model = zoo.called(Decorated())
    x = np.ones((2, T, F), dtype="float32")
    plan = some_plan(reprune.keras.inspect(model, [x]).structure)
    small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
    assert error(outputs(masked, x), outputs(small, x)) < RELATIVE


@needs_tensorflow
def test_unknown_function_of_tensorflow_is_named() -> None:
    model = Whole(lambda x, rnn, head: head(tf.signal.frame(rnn(x), 2, 1, axis=1)), rnn=zoo.lstm(6), head=L.Dense(2))
    with pytest.raises(UnsupportedModelError, match=r"in TensorFlow's \w+"):
        reprune.keras.inspect(model, [np.ones((2, T, F), dtype="float32")])


def test_what_computes_something_else_when_rebuilt_is_refused() -> None:
    @keras.saving.register_keras_serializable(package="reprune-tests")
    class Forgetful(L.Dense):
        def __init__(self, units: int, gain: float = 1.0, **options: Any) -> None:
            super().__init__(units, **options)
            self.gain = gain

        def call(self, x: Any) -> Any:
            return super().call(x) * self.gain

    x = np.ones((2, T, F), dtype="float32")
    with pytest.raises(VerificationError, match=r"get_config\(\)"):
        reprune.keras.inspect(zoo.functional(lambda x: Forgetful(2, 3.0)(L.LSTM(4)(x))), [x])
    luck = np.random.default_rng(0)
    for wire in (
        lambda x, rnn: rnn(x) * (3.0 if isinstance(x, keras.KerasTensor) else 1.0),
        lambda x, rnn: rnn(x) + luck.normal(),
    ):
        with pytest.raises(VerificationError, match="computes something else"):
            reprune.keras.inspect(zoo.called(Whole(wire, rnn=L.LSTM(4))), [x])
