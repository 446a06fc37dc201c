"""Cells of the user's own in `keras.layers.RNN`, or called in a loop: what they keep from step to step are units."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import reprune.keras
from reprune.keras.calibration.responses import observe
from reprune.keras.tracing.rules.cells import option_of
from tests.helpers import keras_cells as cells
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import error, in_double, outputs, some_plan

L, K, F = zoo.L, zoo.K, zoo.F
T = 3
Build = Callable[[Any], Any]


def of(cell: Callable[[], Any], **options: Any) -> Build:
    return lambda x: L.RNN(cell(), return_sequences=True, name="rnn", **options)(x)


def looped(x: Any) -> Any:
    cell, states, found = cells.WrittenLSTM(6, name="rnn"), [K.zeros_like(L.Dense(6)(x[:, 0]))] * 2, []
    for step in range(T):
        output, states = cell(x[:, step], states)
        found.append(output)
    return K.stack(found, axis=1)


MODELS: dict[str, tuple[Build, dict[str, int]]] = {
    # Model, and its layers with their units.
    "lstm": (of(lambda: cells.WrittenLSTM(6), go_backwards=True), {"rnn": 6}),
    "learnt start": (of(lambda: cells.SlicedLSTM(6)), {"rnn": 6}),
    "layers inside": (of(lambda: cells.DenseGRU(6)), {"rnn": 6}),
    "backbone": (of(lambda: cells.Continuous(6), unroll=True), {"rnn": 6}),
    "two widths": (of(lambda: cells.Memory(6, 5, 3)), {"rnn": 6, "rnn:state1": 5}),
    "stack": (
        of(lambda: [cells.WrittenLSTM(6), cells.Skipping(L.LSTMCell(6)), L.GRUCell(5), cells.Continuous(4)]),
        {"rnn:l0": 6, "rnn:l1": 6, "rnn:l2": 5, "rnn:l3": 4},
    ),
    "two directions": (
        lambda x: L.Bidirectional(L.RNN(cells.DenseGRU(6), return_sequences=True), name="rnn")(x),
        {"rnn:forward": 6, "rnn:backward": 6},
    ),
    "a layer of its own": (
        lambda x: L.Bidirectional(cells.OwnLayer(6, return_sequences=True), merge_mode="sum", name="rnn")(x),
        {"rnn:forward": 6, "rnn:backward": 6},
    ),
    "loop": (looped, {"rnn": 6}),
}


def model_of(build: Build, shape: tuple[int, ...] = (T, F)) -> Any:
    return zoo.functional(lambda x: L.Dense(2)(build(L.LSTM(4, return_sequences=True, name="below")(x))), shape)


@pytest.mark.parametrize("name", MODELS)
def test_pruned_equals_masked(name: str) -> None:
    build, units = MODELS[name]
    with in_double():
        model = model_of(build)
        x = zoo.inputs_for(model)
        structure = reprune.keras.trace(model, x)
        assert {key: (layer.units, layer.pin) for key, layer in structure.layers.items()} == {
            "below": (4, None),
            **{key: (count, None) for key, count in units.items()},
        }
        plan = some_plan(structure, 1)
        small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
        more = zoo.inputs_for(model, 5, 3)
        assert error(outputs(masked, more), outputs(small, more)) < 1e-10
    assert small.count_params() < model.count_params()


def test_a_written_lstm_is_pruned_as_that_of_keras(tmp_path: Path) -> None:
    """Masked steps included: both get the same weights, and lose the same units."""

    def build(layer: Any) -> Any:
        def run(tokens: Any) -> Any:
            return L.Dense(2, name="head")(layer(L.Embedding(7, 4, mask_zero=True, name="words")(tokens)))

        return zoo.functional(run, (T,), dtype="int32")

    with in_double():
        theirs, own = build(L.LSTM(6, name="rnn")), build(L.RNN(cells.WrittenLSTM(6), name="rnn"))
        own.set_weights(theirs.get_weights())
        x = zoo.inputs_for(own)
        plans = [reprune.keras.plan(model, [x], ratio=0.5, method="iss-gm") for model in (theirs, own)]
        assert plans[0].kept == plans[1].kept
        assert [plan.structure.contractions for plan in plans[:1]] == [plans[1].structure.contractions]
        first, second = (reprune.keras.apply(model, plan) for model, plan in zip((theirs, own), plans, strict=True))
        assert error(outputs(first, x), outputs(second, x)) < 1e-12
        second.save(tmp_path / "small.keras")
        again = keras.models.load_model(tmp_path / "small.keras")
        assert error(outputs(second, x), outputs(again, x)) < 1e-12


def test_states_are_seen_and_carried() -> None:
    """Responses are what the cell keeps, not what it emits; a stateful layer goes on with the entries that are left."""
    with in_double():
        entry = keras.Input(batch_shape=(2, T, F))
        layer = L.RNN(cells.Memory(6, 5, 3), stateful=True, return_state=True, name="rnn")
        model = zoo.randomise(keras.Model(entry, L.Dense(2)(layer(entry)[0])))
        x = zoo.inputs_for(model)
        _, *states = layer(x)
        layer.reset_state()
        structure = reprune.keras.inspect(model, [x]).structure
        statistics = observe(model, structure, [x])
        _, *found = L.RNN(layer.cell, return_state=True)(x)
        steps = [L.RNN(layer.cell, return_state=True)(x[:, : step + 1])[1:] for step in range(T)]
        for place, name in enumerate(("rnn", "rnn:state1")):
            kept = np.concatenate([np.asarray(step[place]) for step in steps])
            assert np.allclose(statistics[name].mean, kept.mean(0), atol=1e-12)
        assert error([np.asarray(s) for s in states], [np.asarray(s) for s in found]) < 1e-12
        model(x)
        plan = some_plan(structure, 1)
        small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
        for _ in range(3):
            assert error(outputs(masked, x), outputs(small, x)) < 1e-10


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (lambda: cells.Halves(6), "a position that is written into the code"),
        (lambda: cells.Unsized(), "let its constructor take the number of units"),
    ],
)
def test_what_cannot_be_made_narrower_is_pinned(cell: Callable[[], Any], reason: str) -> None:
    model = model_of(of(cell))
    pinned = reprune.keras.inspect(model, [zoo.inputs_for(model)]).pinned
    assert {name: reason in str(pin) for name, pin in pinned.items()} == {"rnn": True}


class Opaque(cells.DenseGRU):
    """Nobody can follow it."""

    def call(self, x: Any, states: Any) -> Any:
        return super().call(x * float(np.asarray(x).shape[0]), states)


class Returning(cells.DenseGRU):
    """It returns a state more than it takes."""

    def call(self, x: Any, states: Any) -> Any:
        output, after = super().call(x, states)
        return output, [*after, x]


def stack_of(x: Any) -> Any:
    return L.RNN([L.GRUCell(5), Opaque(6)], name="rnn")(x, initial_state=[[L.LSTM(5)(x)], [L.LSTM(6)(x)]])


def other_direction(x: Any) -> Any:
    return L.Bidirectional(L.GRU(6), backward_layer=L.RNN(Opaque(6), go_backwards=True), name="rnn")(x)


def single_step(x: Any) -> Any:
    return Returning(6, name="rnn")(x[:, 0], [L.LSTM(6)(x)])[0]


@pytest.mark.parametrize(
    ("build", "cell", "prunable", "why"),
    [
        (stack_of, "rnn:l1", ("below",), "the code of Opaque cannot be followed: .*KerasTensor"),
        (other_direction, "rnn:backward", (), "the code of Opaque cannot be followed: .*KerasTensor"),
        (single_step, "rnn", (), "returns 2 states beside its output, and takes 1"),
    ],
)
def test_a_cell_that_cannot_be_followed_pins_what_it_meets(
    build: Build, cell: str, prunable: tuple[str, ...], why: str
) -> None:
    model = model_of(build)
    structure = reprune.keras.trace(model, zoo.inputs_for(model))
    assert structure.prunable == prunable
    layer = structure.layers[cell]
    assert layer.units == 6
    assert layer.pin is not None
    assert re.search(why, layer.pin.reason)
    line = Opaque.call.__code__.co_firstlineno + 1
    assert layer.pin.site.location == ("" if "states" in why else f"{__file__}:{line}")


class Started(L.Layer):
    """It learns where to start, and goes through a function there."""

    def __init__(self, units: int, through: str, **options: Any) -> None:
        super().__init__(**options)
        self.units = self.state_size = units
        self.through = through

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.recurrent = self.add_weight(shape=(self.units, self.units), name="recurrent")
        self.start = self.add_weight(shape=(1, self.units), name="start")

    def get_initial_state(self, batch_size: Any = None) -> Any:
        return [K.tile(keras.activations.get(self.through)(self.start), (batch_size, 1))]

    def call(self, x: Any, states: Any) -> Any:
        h = K.tanh(x @ self.kernel + states[0] @ self.recurrent) + 0.5 * states[0]
        return h, [h]


@pytest.mark.parametrize(("through", "zero"), [("tanh", True), ("sigmoid", False)])
def test_units_are_summed_up_only_where_they_are_zero_without_weights(through: str, zero: bool) -> None:
    def build(x: Any) -> Any:
        return L.Dense(2)(K.sum(L.RNN(Started(6, through), name="rnn")(x), axis=-1, keepdims=True))

    with in_double():
        model = zoo.functional(build)
        x = zoo.inputs_for(model)
        structure = reprune.keras.trace(model, x)
        assert (structure.layers["rnn"].pin is None) is zero
        plan = some_plan(structure, 1)
        small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
        assert error(outputs(masked, x), outputs(small, x)) < 1e-10


class Decoy(Started):
    """The first number that is as large as its states has nothing to do with them."""

    def __init__(self, depth: int, units: int, flag: bool = True) -> None:
        super().__init__(units, "tanh")
        self.depth, self.flag = depth, flag

    def get_config(self) -> dict[str, Any]:
        return {"flag": self.flag, "depth": self.depth, "units": self.units}


def test_the_option_that_says_how_wide_a_state_is_is_tried_out() -> None:
    found = [
        option_of(cell, state)
        for cell, state in (
            (cells.Memory(6, 5, 3), 0),
            (cells.Memory(6, 5, 3), 1),
            (cells.Skipping(L.LSTMCell(6)), 1),
            (cells.OwnLayer(6), 0),
            (L.RNN([L.GRUCell(4), L.GRUCell(6)]), 1),
            (Decoy(6, 6), 0),
            (cells.Unsized(), 0),
        )
    ]
    assert found == [
        ("units",), ("memory",), ("cell", "config", "units"), ("units",),
        ("cell", "config", "cells", 1, "config", "units"), ("units",), None,
    ]  # fmt: skip
