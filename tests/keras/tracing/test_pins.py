"""What cannot be pruned exactly is left alone, with a reason that says why."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import reprune.keras
from reprune.core.errors import PlanError, UnsupportedModelError
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import RELATIVE, error, outputs, some_plan

L, K, T, F = zoo.L, zoo.K, zoo.T, zoo.F


class Scaled(keras.layers.Layer):
    """A custom layer with a weight of its own and a recurrent layer inside."""

    LAYER: Any = L.LSTM

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rnn = self.LAYER(4)

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")
        self.rnn.build(shape)

    def call(self, x: Any) -> Any:
        return K.expand_dims(self.rnn(x) * self.scale, 1)


class Stepping(Scaled):
    """A cell, called step by step."""

    LAYER = L.LSTMCell

    def call(self, x: Any) -> Any:
        output, states = x[:, 0], [K.zeros_like(x[:, 0, :1]) * K.zeros((4,)) for _ in range(2)]
        for step in range(T):
            output, states = self.rnn(x[:, step], states)
        return K.expand_dims(output, 1) * self.scale.value


class Own(keras.Operation):
    """An operation of the user's own."""

    def call(self, x: Any) -> Any:
        return 2 * x

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)


class Gain(keras.layers.Layer):
    """A layer without recurrent layers inside, whose code asks for more than what an operation takes."""

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(shape=(shape[-1],), name="gain")

    def call(self, x: Any) -> Any:
        return x * self.gain.value


class OwnCell(L.SimpleRNNCell):
    """A cell that does something of its own."""

    def call(self, inputs: Any, states: Any, training: bool = False) -> Any:
        output, new = super().call(inputs, states, training=training)
        return output + K.mean(output, axis=-1, keepdims=True), new


class OwnLayer(L.RNN):
    """A layer that does something of its own."""

    def call(self, sequences: Any, initial_state: Any = None, mask: Any = None, training: bool = False) -> Any:
        return super().call(sequences, initial_state, mask, training)[:, ::-1]


def _functional(build: Callable[..., Any], *shapes: Any) -> Callable[[], Any]:
    return lambda: zoo.functional(build, *shapes)


def _named(units: int = 6, **options: Any) -> Any:
    return L.LSTM(units, return_sequences=True, name="pinned", **options)


def _time_stacked(x: Any) -> Any:
    both = L.Concatenate(axis=1)([_named(F)(x), x])
    return L.Dense(2)(both)


def _offset(x: Any) -> Any:
    h = _named(6)(x)
    return L.Dense(2)(K.add(h, K.flip(h, axis=-1)))


def _crossed(x: Any) -> Any:
    twice = L.Concatenate()([L.GRU(3, return_sequences=True)(x)] * 2)
    return L.Dense(2)(L.Add()([_named(6)(x), twice]))


def _chosen(x: Any) -> Any:
    h = _named()(x)
    return L.Dense(2)(K.take_along_axis(zoo.lstm(6)(x), K.cast(h > 0, "int32"), axis=1))


def _outer(x: Any) -> Any:
    first = K.transpose(L.GRU(4, return_sequences=True)(x), (0, 2, 1))
    return L.Dense(2)(L.Flatten()(K.matmul(first, _named()(x))))


def _looked_at(x: Any) -> Any:
    return L.Dense(2)(L.Lambda(_as_numpy, output_shape=(T, 6))(_named()(x)))


def _as_numpy(h: Any) -> Any:
    return np.asarray(h) * 2.0 if isinstance(h, keras.KerasTensor) else h * 2.0


def _sigmoids(x: Any) -> Any:
    return L.Dense(2)(L.Attention()([_named(activation="sigmoid")(x), zoo.lstm(6, activation="sigmoid")(x)]))


PINNED: dict[str, tuple[Callable[[], Any], str]] = {
    "output": (_functional(lambda x: _named()(x)), "are an output of the model"),
    "lambda": (_functional(_looked_at), r"a Lambda reads them, .* keras.ops"),
    "unknown": (_functional(lambda x: L.Dense(2)(K.glu(_named()(x)))), "what Glu does .* is not known"),
    "own-operation": (
        _functional(lambda x: L.Dense(2)(Own()(_named()(x)))),
        "what Own does with its units is not known",
    ),
    "running-sum": (_functional(lambda x: L.Dense(2)(K.cumsum(_named()(x), axis=-1))), "runs over its units as over"),
    "weighted-mean": (_functional(lambda x: L.Dense(2)(K.average(_named()(x), axis=-1))), "reduced over its units"),
    "halves": (_functional(lambda x: L.Dense(2)(K.add(*K.split(_named()(x), 2, -1)))), "other positions of its own"),
    "steps-by-units": (_functional(_chosen), "used as indices"),
    "masked-by-units": (_functional(lambda x: L.Dense(2)(L.LSTM(3)(L.Masking(-1.0)(_named()(x))))), "a mask is made"),
    "own-weights": (_functional(lambda x: L.Dense(2)(Gain()(_named()(x)))), r"weights of its own \(gain\).*Dense"),
    "letters-left-out": (_functional(lambda x: L.Dense(2)(K.einsum("...d,...e->...d", _named()(x), x))), "letters out"),
    "softmax": (_functional(lambda x: L.Dense(2)(L.Softmax()(_named()(x)))), "a softmax runs over its units"),
    "mixing-activation": (
        _functional(lambda x: L.Dense(2)(_named(activation="softmax")(x))),
        "its activation softmax mixes the units",
    ),
    "input-added": (_functional(lambda x: L.Dense(2)(L.Add()([_named(F)(x), x]))), "cannot be made narrower"),
    "input-stacked": (_functional(_time_stacked), "cannot be made narrower"),
    "flipped": (_functional(_offset), "repeated or reordered"),
    "time-as-features": (_functional(lambda x: L.Dense(2)(L.LSTM(4)(L.Permute((2, 1))(_named()(x))))), "as over time"),
    "mean-over-units": (_functional(lambda x: L.Dense(2)(K.mean(_named()(x), axis=-1))), "reduced over its units"),
    "half": (_functional(lambda x: L.Dense(2)(_named()(x)[..., :3])), "by a position that is written into the code"),
    "outer-product": (_functional(_outer), "on two axes of a product"),
    "one-unit": (_functional(lambda x: L.Dense(2)(_named(1)(x))), "it has a single unit"),
    "grouped": (_functional(lambda x: L.Dense(2)(L.Conv1D(4, 2, groups=2)(_named()(x)))), "cut into 2 groups"),
    "group-norm": (_functional(lambda x: L.Dense(2)(L.GroupNormalization(2)(_named()(x)))), "cut into 2 groups"),
    "unequal-attention": (
        _functional(lambda x: L.Dense(2)(L.Attention()([_named(F)(x), x]))),
        "multiplied with values that cannot",
    ),
    "sigmoid-attention": (_functional(_sigmoids), "cannot be silenced"),
    "crossed": (_functional(_crossed), r"other positions of gru"),
}


@pytest.mark.parametrize("name", PINNED)
def test_pin_says_why(name: str) -> None:
    build, reason = PINNED[name]
    keras.utils.set_random_seed(0)
    model = build()
    structure = reprune.keras.trace(model, zoo.inputs_for(model))
    pin = structure.layers["pinned"].pin
    assert pin is not None
    assert re.search(reason, pin.reason), pin
    assert "pinned" not in structure.prunable
    if "other positions" in reason:
        assert pin.site.operation.startswith(("Split", "Add"))
    assert all(layer.cell in ("lstm", "gru") for layer in structure.layers.values())
    assert (structure.layers["pinned"].units == 1) is (name == "one-unit")
    if name != "one-unit":
        with pytest.raises(PlanError):
            some_plan(structure).with_kept({"pinned": [0]})


def test_other_layers_are_still_pruned() -> None:
    model = zoo.functional(lambda x: L.Dense(2)(L.LSTM(5)(L.Softmax()(_named()(x)))))
    inputs = zoo.inputs_for(model)
    plan = some_plan(reprune.keras.trace(model, inputs))
    small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
    assert small.count_params() < model.count_params()
    assert error(outputs(masked, inputs), outputs(small, inputs)) < RELATIVE


CUSTOM: dict[str, tuple[Callable[..., Any], int]] = {
    "scaled": (Scaled, 2),
    "stepping": (Stepping, 2),
    "layer": (lambda **options: OwnLayer(OwnCell(4), return_sequences=True, **options), 2),
    "cell": (lambda **options: L.RNN(OwnCell(4), return_sequences=True, **options), 1),
}


@pytest.mark.parametrize(("build", "left_alone"), CUSTOM.values(), ids=CUSTOM)
def test_custom_code_is_listed_and_left_alone(build: Callable[..., Any], left_alone: int) -> None:
    layer = build(name="custom")
    model = zoo.functional(lambda x: L.Dense(2)(L.GRU(3)(layer(L.LSTM(5, return_sequences=True, name="before")(x)))))
    structure = reprune.keras.trace(model, zoo.inputs_for(model))
    pinned = {name: str(layer.pin) for name, layer in structure.layers.items() if layer.pin}
    assert len(pinned) == left_alone
    assert all("custom" in f"{name} {pin}" for name, pin in pinned.items())
    assert len(structure.prunable) == 3 - left_alone


@pytest.mark.parametrize(("groups", "exact"), [(1, False), (-1, True)])
def test_a_group_of_all_units_mixes_them_and_groups_of_one_do_not(groups: int, exact: bool) -> None:
    model = zoo.randomise(zoo.sequential(zoo.lstm(6), L.GroupNormalization(groups), L.Dense(2)))
    inputs = zoo.inputs_for(model)
    structure = reprune.keras.trace(model, inputs)
    (layer,) = structure.layers.values()
    assert layer.pin is None
    assert ("GroupNormalization" in str(layer.approximate)) is not exact
    plan = some_plan(structure)
    small, masked = (outputs(of(model, plan), inputs) for of in (reprune.apply, reprune.mask))
    assert (error(small, masked) < 1e-5) is exact


def test_layer_normalization_is_approximate() -> None:
    model = zoo.sequential(zoo.lstm(6), L.LayerNormalization(), L.Dense(2))
    inputs = zoo.inputs_for(model)
    structure = reprune.keras.trace(model, inputs)
    (layer,) = structure.layers.values()
    assert layer.pin is None
    assert "LayerNormalization" in str(layer.approximate)
    plan = some_plan(structure)
    small = reprune.keras.apply(model, plan)
    # Sliced, and exactly what the definition says on the kept units.
    kept = plan.kept[layer.name]
    rnn = keras.Model(small.inputs[0], small.layers[0].output)
    h = np.asarray(rnn(inputs), dtype="float64")
    gamma, beta = (np.asarray(w.numpy())[kept] for w in model.layers[1].weights)
    normed = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-3) * gamma + beta
    kernel, bias = (np.asarray(w.numpy()) for w in model.layers[2].weights)
    np.testing.assert_allclose(np.asarray(small(inputs)), normed @ kernel[kept] + bias, rtol=1e-4, atol=1e-5)


def test_strict_raises_instead_of_pinning() -> None:
    model = zoo.functional(lambda x: L.Dense(2)(L.LSTM(5)(L.Softmax()(_named()(x)))))
    with pytest.raises(UnsupportedModelError, match=r"pinned: a softmax"):
        reprune.keras.inspect(model, [zoo.inputs_for(model)], strict=True, verify=False)


def test_nothing_recurrent() -> None:
    model = zoo.sequential(L.Dense(4), L.Dense(2))
    with pytest.raises(UnsupportedModelError, match="no recurrent layer"):
        reprune.keras.inspect(model, [zoo.inputs_for(model)])
