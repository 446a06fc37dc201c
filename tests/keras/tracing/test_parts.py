"""Layers whose units are those of several others side by side: a decoder that starts from both directions."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import reprune.keras
from reprune.keras.calibration.responses import observe
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import error, in_double, outputs, some_plan

L, K, F = zoo.L, zoo.K, zoo.F
T = 3


def translator(name: str = "decoder") -> Any:
    def build(source: Any, target: Any) -> Any:
        options = {"return_state": True, "return_sequences": True}
        memory, h, c, other_h, other_c = L.Bidirectional(L.LSTM(4, **options), name="enc")(source)
        states = [L.Concatenate()([h, other_h]), L.Concatenate()([c, other_c])]
        words = L.LSTM(8, return_sequences=True, name=name)(target, initial_state=states)
        return L.Dense(2, name="head")(L.Concatenate()([words, L.Attention()([words, memory])]))

    return zoo.functional(build, (T, F), (T, F))


def test_a_decoder_of_both_directions_loses_the_units_of_each() -> None:
    with in_double():
        model = translator()
        x = zoo.inputs_for(model)
        structure = reprune.keras.inspect(model, [x]).structure
        assert {name: (layer.units, layer.part, layer.pin) for name, layer in structure.layers.items()} == {
            "enc:forward": (4, None, None),
            "enc:backward": (4, None, None),
            "decoder:0-3": (4, ("decoder", 0), None),
            "decoder:4-7": (4, ("decoder", 4), None),
        }
        plan = some_plan(structure, 1)
        small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
        assert small.get_layer("decoder").units == sum(len(plan.kept[name]) for name in ("decoder:0-3", "decoder:4-7"))
        more = zoo.inputs_for(model, 5, 3)
        assert error(outputs(masked, more), outputs(small, more)) < 1e-10
        # Worked out by hand: the decoder's recurrent weights of the kept units, in all four gates.
        kept = [*plan.kept["enc:forward"], *(4 + unit for unit in plan.kept["enc:backward"])]
        columns = [8 * gate + unit for gate in range(4) for unit in kept]
        whole = np.asarray(model.get_layer("decoder").cell.recurrent_kernel)
        assert np.array_equal(small.get_layer("decoder").cell.recurrent_kernel, whole[np.ix_(kept, columns)])
        seen = keras.Model(model.inputs, model.get_layer("decoder").output)(x)
        statistics = observe(model, structure, [x])
        means = np.concatenate([statistics[name].mean for name in ("decoder:0-3", "decoder:4-7")])
        assert np.allclose(means, np.asarray(seen).mean((0, 1)), atol=1e-12)
        # A plan finds a model of the same weights whose layers have other names.
        renamed = translator("other")
        renamed.set_weights(model.get_weights())
        assert error(outputs(reprune.keras.apply(renamed, plan), more), outputs(small, more)) < 1e-12


def test_states_between_batches_are_cut_part_by_part() -> None:
    def build(x: Any) -> Any:
        wide = L.GRU(7, stateful=True, return_sequences=True, name="wide")(x)
        return L.Dense(2)(wide + K.concatenate([zoo.lstm(4, name="one")(x), zoo.lstm(3, name="other")(x)], axis=-1))

    with in_double():
        entry = keras.Input(batch_shape=(2, T, F))
        model = zoo.randomise(keras.Model(entry, build(entry)))
        x = zoo.inputs_for(model)
        model(x)
        plan = some_plan(reprune.keras.trace(model, x), 2)
        assert plan.kept["wide:4-6"] == plan.kept["other"]
        small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
        for _ in range(3):
            assert error(outputs(masked, x), outputs(small, x)) < 1e-10
