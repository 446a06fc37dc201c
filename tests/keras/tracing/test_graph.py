"""Names of operations and weights, and the structures that follow from them, written down by hand."""

from __future__ import annotations

from typing import Any

import keras
import pytest

import reprune.keras
from reprune.core.errors import UnsupportedModelError
from reprune.keras.tracing.graph import check_keras, graph_of, named_weights, own_graph
from reprune.keras.tracing.location import line_of
from reprune.keras.tracing.record import record
from reprune.keras.tracing.symbolic import followed
from tests.helpers import keras_zoo as zoo

L, K, T, F = zoo.L, zoo.K, zoo.T, zoo.F


class Block(L.Layer):
    """A custom layer made of layers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inner = L.Dense(4, name="inner")

    def build(self, shape: Any) -> None:
        self.inner.build(shape)

    def call(self, x: Any) -> Any:
        return K.relu(self.inner(x))


class Gain(L.Layer):
    """A weight of its own beside a layer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inner = L.Dense(4, use_bias=False, name="inner")

    def build(self, shape: Any) -> None:
        self.inner.build(shape)
        self.gain = self.add_weight(shape=(4,), name="gain")

    def call(self, x: Any) -> Any:
        return self.inner(x) * self.gain


class Doubled(keras.Operation):
    """An operation of one's own."""

    def call(self, x: Any) -> Any:
        return 2 * x

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)


def test_names() -> None:
    shared = L.Dense(4, use_bias=False, name="shared")

    def build(x: Any) -> Any:
        read = keras.Input((None, 4))
        nested = keras.Model(read, L.LSTM(4, return_sequences=True, use_bias=False, name="lstm")(read), name="nested")
        y = nested(shared(L.TimeDistributed(L.Dense(4, name="inside"), name="each")(x)))
        y = Gain(name="gain")(shared(Block(name="block")(y)))
        y = L.Bidirectional(L.RNN([L.SimpleRNNCell(2, use_bias=False), L.GRUCell(3)]), name="both")(y)
        return L.Dense(2, name="head")(y)

    graph = graph_of(zoo.functional(build))
    cells = ["l0/kernel", "l0/recurrent_kernel", "l1/kernel", "l1/recurrent_kernel", "l1/bias"]
    assert list(graph.weights()) == [
        "each/kernel",
        "each/bias",
        "shared/kernel",
        "nested/lstm/kernel",
        "nested/lstm/recurrent_kernel",
        "block/inner/kernel",
        "block/inner/bias",
        "gain/gain",
        "gain/inner/kernel",
        *(f"both/{direction}/{name}" for direction in ("forward", "backward") for name in cells),
        "head/kernel",
        "head/bias",
    ]
    assert graph.weight_names() == {id(weight): name for name, weight in graph.weights().items()}
    named = {path for path, _ in graph.layers()}
    assert named == {"each", "shared", "nested/lstm", "gain", "both", "head", "block/inner"} | {
        path for path in named if "input_layer" in path or "input_0" in path
    }


def test_weights_of_one_name_are_told_apart() -> None:
    layer = L.Layer()
    layer.weights_held = [layer.add_weight(shape=(2,), name="same") for _ in range(3)]
    assert [name for name, _ in named_weights(layer, "own")] == ["own/same", "own/same_", "own/same__"]


def test_the_states_of_stateful_layers() -> None:
    inputs = keras.Input(batch_shape=(2, T, F))
    both = L.Bidirectional(L.GRU(3, stateful=True, return_sequences=True), name="both")
    lstm = L.LSTM(4, stateful=True)
    model = keras.Model(inputs, L.Dense(2)(L.GRU(5)(L.RepeatVector(2)(lstm(both(inputs))))))
    shapes = [tuple(state.shape) for state in graph_of(model).states()]
    assert shapes == [(2, 3), (2, 3), (2, 4), (2, 4)]


def test_directions_that_must_stay_equally_large() -> None:
    def build(x: Any) -> Any:
        y = zoo.both(4, name="free")(x)
        y = zoo.both(4, merge_mode="sum", name="summed")(y)
        backward = L.GRU(3, go_backwards=True)
        return L.Dense(2)(reprune.keras.RaggedBidirectional(L.GRU(4), backward_layer=backward, name="uneven")(y))

    model = zoo.functional(build)
    x = zoo.inputs_for(model)
    pair = ("free:forward", "free:backward")
    for uniform, expected in ((True, (pair,)), (False, ())):
        structure = record(model, x, uniform=uniform).structure()
        assert structure.count_coupled == expected
        assert ("summed:forward", "summed:backward") in structure.index_coupled


def test_the_line_of_an_operation_is_that_of_its_first_call() -> None:
    x, operation = keras.Input((4,)), Doubled()
    with followed(x, L.Dense(2)):
        y = operation(x)
        operation(y)
    first = test_the_line_of_an_operation_is_that_of_its_first_call.__code__.co_firstlineno
    assert line_of(operation) == f"{__file__}:{first + 3}"
    assert line_of(L.Dense(2)) == ""


def test_what_is_no_model_of_keras_is_told() -> None:
    class Other:
        pass

    with pytest.raises(UnsupportedModelError, match=r"Other is not a keras\.Model"):
        check_keras(Other())
    Other.__module__ = "tf_keras.models"
    with pytest.raises(UnsupportedModelError, match="not of Keras 3"):
        check_keras(Other())
    with pytest.raises(UnsupportedModelError, match="has not been built"):
        own_graph(keras.Sequential([L.Dense(2)]))
    assert own_graph(L.Dense(2)) is None
