"""States that the caller hands over and gets back: they shrink with the units, and only they."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import reprune.keras
from reprune.keras.tracing.tracer import carried_inputs, paired_states
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_labels import traced
from tests.helpers.keras_models import RELATIVE, error, outputs, some_plan

L, K, T, F = zoo.L, zoo.K, zoo.T, zoo.F


def lstm(x: Any, h: Any, c: Any) -> Any:
    y, *states = L.LSTM(6, return_sequences=True, return_state=True, name="rnn")(x, initial_state=[h, c])
    return [L.Dense(2)(y), *states]


def masked(x: Any, h: Any, done: Any) -> Any:
    """What a policy does where an episode has ended."""
    left = K.multiply(h, K.subtract(1.0, done))
    y, state = L.GRU(6, return_sequences=True, return_state=True, name="rnn")(x, initial_state=left)
    return [L.Dense(2)(y), state]


def stacked(x: Any, states: Any) -> Any:
    """Both layers' states in one tensor: sequences × layers × units."""
    first, second = states[:, 0], states[:, 1]
    y, one = L.GRU(6, return_sequences=True, return_state=True)(x, initial_state=first)
    y, other = L.GRU(6, return_state=True)(y, initial_state=second)
    return [L.Dense(2)(y), K.stack([one, other], axis=1)]


def joined(x: Any, both: Any) -> Any:
    """Hidden and cell state side by side in one tensor."""
    y, *states = L.LSTM(6, return_sequences=True, return_state=True, name="rnn")(x, initial_state=K.split(both, 2, -1))
    return [L.Dense(2)(y), K.concatenate(states, axis=-1)]


def step(x: Any, h: Any, c: Any) -> Any:
    """A single step of a cell."""
    y, states = L.LSTMCell(6, name="rnn")(x[:, 0], [h, c])
    return {"answer": L.Dense(2)(y), "h": states[0], "c": states[1]}


def decoder(word: Any, encoded: Any, h: Any, c: Any) -> Any:
    """A translator's inference decoder: one word on, with attention to what the encoder made."""
    y, *states = L.LSTM(F, return_sequences=True, return_state=True, name="rnn")(word, initial_state=[h, c])
    context = L.Attention()([L.Dense(F)(y), encoded])
    return [L.Dense(2)(L.Concatenate()([y, context])), *states]


CARRIED: dict[str, tuple[Callable[..., Any], tuple[Any, ...], list[int], list[int]]] = {
    # Model, shapes of its inputs, and which inputs and outputs are states.
    "lstm": (lstm, ((T, F), (6,), (6,)), [1, 2], [1, 2]),
    "masked": (masked, ((T, F), (6,), (1,)), [1], [1]),
    "stacked": (stacked, ((T, F), (2, 6)), [1], [1]),
    "joined": (joined, ((T, F), (12,)), [1], [1]),
    "step": (step, ((T, F), (6,), (6,)), [1, 2], [1, 2]),
    "decoder": (decoder, ((1, F), (T, F), (F,), (F,)), [2, 3], [1, 2]),
}


@pytest.mark.parametrize("name", CARRIED)
def test_pruned_equals_masked_over_two_calls(name: str, tmp_path: Path) -> None:
    build, shapes, taken, given = CARRIED[name]
    model = zoo.functional(build, *shapes)
    x = zoo.inputs_for(model)
    info = reprune.keras.inspect(model, [x])
    assert not info.pinned
    plan = some_plan(info.structure, 1)
    (kept,) = {tuple(units) for units in plan.kept.values()}
    small, whole = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
    (units,) = {layer.units for layer in info.structure.layers.values()}
    times = [model.inputs[place].shape[-1] // units for place in taken]
    assert [small.inputs[place].shape[-1] for place in taken] == [len(kept) * count for count in times]
    assert [(state.given.size, state.given.stay(plan.removed())[0].size) for state in info.structure.states] == [
        (units * count, len(kept) * count) for count in times
    ]

    def cut(values: list[Any], places: list[int]) -> list[Any]:
        def left(value: Any) -> Any:
            return value[..., [start + unit for start in range(0, value.shape[-1], units) for unit in kept]]

        return [left(np.asarray(v)) if i in places else v for i, v in enumerate(values)]

    for _ in range(2):
        expected, found = outputs(whole, x), outputs(small, cut(x, taken))
        assert error(cut(expected, given), found) < RELATIVE
        x = [expected[given[taken.index(place)]] if place in taken else value for place, value in enumerate(x)]
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    assert error(outputs(small, cut(x, taken)), outputs(again, cut(x, taken))) < 1e-6
    result = reprune.keras.prune(model, [zoo.inputs_for(model, 16, seed) for seed in range(4)], ratio=0.5)
    assert result.plan.folds


def test_a_state_of_several_layers_that_does_not_come_back() -> None:
    """A decoder of several layers, each of which starts from what an encoder made of the source."""

    def decoder(tokens: Any, encoded: Any) -> Any:
        words = L.Embedding(7, F)(tokens)
        for _ in range(2):
            words = L.GRU(6, return_sequences=True)(words, initial_state=encoded)
        return L.Dense(2)(words)

    inputs = keras.Input((T,), dtype="int32"), keras.Input((6,))
    model = zoo.randomise(keras.Model(inputs, decoder(*inputs)))
    x = zoo.inputs_for(model)
    info = reprune.keras.inspect(model, [x])
    assert not info.pinned
    plan = some_plan(info.structure, 1)
    kept, other = plan.kept.values()
    assert kept == other
    (state,) = info.structure.states
    assert (state.given.size, state.returned) == (6, None)
    small, whole = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
    assert error(outputs(whole, x), outputs(small, [x[0], np.asarray(x[1])[:, kept]])) < RELATIVE


def test_sequences_are_no_states() -> None:
    """A building block's answer is its units: the sequence is pinned, and with it the state that is returned."""

    def block(x: Any, h: Any) -> Any:
        return L.GRU(6, return_sequences=True, return_state=True)(x, initial_state=h)

    def residual(x: Any, h: Any) -> Any:
        y, state = L.GRU(F, return_sequences=True, return_state=True)(x, initial_state=h)
        return [K.add(x, y), state]

    for build, width in ((block, 6), (residual, F)):
        model = zoo.functional(build, (T, F), (width,))
        (layer,) = reprune.keras.trace(model, zoo.inputs_for(model)).layers.values()
        assert layer.pin is not None
        assert re.search("an output of the model|cannot be made narrower", layer.pin.reason)


def test_a_translator_pruned_as_a_whole_and_taken_apart() -> None:
    """The usual sequence-to-sequence code: trained as one model, used as an encoder and a decoder of its layers."""
    source, target = keras.Input((None, F), name="source"), keras.Input((None, F), name="target")
    _, h, c = L.LSTM(6, return_state=True, name="encoder")(source)
    y, *_ = L.LSTM(6, return_sequences=True, return_state=True, name="decoder")(target, initial_state=[h, c])
    model = zoo.randomise(keras.Model([source, target], L.Dense(2, name="head")(y)))
    x = zoo.inputs_for(model)
    small = reprune.keras.prune(model, [x], 0.5, method="magnitude").model
    units = small.get_layer("decoder").units
    assert units == 3
    states = [keras.Input((units,)) for _ in range(2)]
    word = keras.Input((1, F))
    encoder = keras.Model(small.inputs[0], small.get_layer("encoder").output[1:])
    step, *after = small.get_layer("decoder")(word, initial_state=states)
    walker = keras.Model([word, *states], [small.get_layer("head")(step), *after])
    expected, carried = outputs(small, x)[0], outputs(encoder, x[0])
    for place in range(T):
        found, *carried = outputs(walker, [x[1][:, place : place + 1], *carried])
        assert error([expected[:, place]], [found[:, 0]]) < RELATIVE


def test_which_inputs_are_states_and_which_outputs_they_come_back_as() -> None:
    options = {"return_sequences": True, "return_state": True}
    shapes = (2, 4), (2, 4), (2, 3, 5)
    cases: list[tuple[Callable[..., Any], list[tuple[int, int]], list[int], set[int]]] = [
        # Model, the pairs, the inputs that are states, and those that a layer takes.
        (lambda h, c, x: L.LSTM(4, **options)(x, initial_state=[h, c]), [(0, 1), (1, 2)], [0, 1], {0, 1}),
        (lambda h, c, x: L.LSTM(4, **options)(x, initial_state=[h, c])[::2], [(0, 1)], [0, 1], {0, 1}),
        (lambda h, c, x: L.Dense(2)(L.LSTM(4)(x, initial_state=[h, c])), [], [0, 1], {0, 1}),
        (lambda h, g, x: L.GRU(4, **options)(x, initial_state=h)[1] + L.Dense(4)(g), [(0, 0)], [0], {0}),
        (lambda h, g, x: L.GRU(4)(x, initial_state=K.tanh(L.Dense(4)(h + g))), [], [], set()),
    ]
    for build, pairs, carried, taken in cases:
        tracer, _ = traced(build, *shapes)
        assert paired_states(tracer) == pairs
        assert carried_inputs(tracer) == carried
        assert tracer.records.taken == taken
