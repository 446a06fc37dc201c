"""Latency as a budget of Keras models: what is timed, and a plan made from real times."""

from __future__ import annotations

import numpy as np
import pytest

import reprune
from reprune.core.errors import BudgetError, UnsupportedModelError
from reprune.runtimes import timing

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
pytest.importorskip("onnxruntime")
pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")


def build():
    layers = keras.layers
    inputs = keras.Input((None, 6))
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True), name="both")(inputs)
    x = layers.GRU(10, return_sequences=True, name="gru")(x)
    x = layers.SimpleRNN(4, name="rnn")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


FRAMES = np.random.default_rng(0).normal(size=(2, 7, 6)).astype("float32")


def test_what_is_timed(monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "shortest_ms", lambda call, **_: 1.0)
    table = reprune.measure_latency(build(), FRAMES)
    found = [
        (
            part.name,
            table.grids[part.grid].kind,
            table.grids[part.grid].batch,
            table.grids[part.grid].steps,
            part.inputs(table.layers),
            part.units(table.layers),
        )
        for part in table.parts
    ]
    assert sorted(found) == [
        ("both:backward", "lstm", 2, 7, 6, 8),
        ("both:forward", "lstm", 2, 7, 6, 8),
        ("gru", "gru", 2, 7, 16, 10),
        ("product", "linear", 2, 1, 4, 3),
        ("rnn", "rnn", 2, 7, 10, 4),
    ]
    assert table.shapes == ((2, 7, 6),)
    assert "onnxruntime" in table.runtime


def test_a_plan_from_real_times(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", 1)

    def tagger():
        return keras.Sequential([keras.Input((None, 6)), keras.layers.LSTM(128), keras.layers.Dense(3)])

    frames = np.random.default_rng(0).normal(size=(1, 40, 6)).astype("float32")
    result = reprune.prune(tagger(), [frames], of="latency", ratio=0.4, method="magnitude", round_to="auto")
    table = result.plan.latency
    assert table(result.plan.counts()) == pytest.approx(0.6 * table.dense_ms, rel=0.15)
    result.save(tmp_path)
    np.testing.assert_array_equal(reprune.load(tagger(), tmp_path)(frames), result.model(frames))


def stateful():
    inputs = keras.Input((7, 6), batch_size=2)
    x = keras.layers.LSTM(16, stateful=True, return_sequences=True, name="lstm")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(x)), FRAMES


def handed():
    inputs, states = keras.Input((7, 6)), [keras.Input((16,), name=name) for name in ("hidden", "cell")]
    x, *after = keras.layers.LSTM(16, return_sequences=True, return_state=True, name="lstm")(inputs, states)
    model = keras.Model([inputs, *states], [keras.layers.Dense(3)(x), *after])
    return model, [FRAMES, *np.random.default_rng(1).normal(size=(2, 2, 16)).astype("float32")]


@pytest.mark.parametrize("build", [stateful, handed])
def test_states_of_the_file_are_fed(build, monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", 1)
    fed = []

    def shortest_ms(call, **_):
        call()
        fed.extend([[array.shape for array in call.args]] if hasattr(call, "args") else [])
        return 1.0

    monkeypatch.setattr(timing, "shortest_ms", shortest_ms)
    model, example = build()
    model(example)
    before = [np.array(variable) for variable in model.variables]
    table = reprune.measure_latency(model, example)
    assert fed == [[(2, 7, 6), (2, units), (2, units)] for units in (16, table.small["lstm"])]
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_a_stateful_model_is_pruned_to_a_time(monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", 1)

    def shortest_ms(call, **_):
        """As many ms as a layer's answer is wide; for the model, as its states and its answer are."""
        answer = call()[0].shape[-1]
        return float(call.args[-1].shape[-1] + answer if hasattr(call, "args") else answer)

    monkeypatch.setattr(timing, "shortest_ms", shortest_ms)
    model, frames = stateful()
    result = reprune.prune(model, [frames], of="latency", target_ms=8 + 3, method="magnitude")
    assert result.plan.counts() == {"lstm": 8}


def test_errors_name_what_cannot_be_timed():
    with pytest.raises(BudgetError, match="onnxruntime-int8"):
        reprune.measure_latency(build(), FRAMES, runtime="torch")
    model = keras.Sequential([keras.Input((5, 6, 4)), keras.layers.ConvLSTM1D(3, 2), keras.layers.Flatten()])
    model.add(keras.layers.Dense(2))
    with pytest.raises(UnsupportedModelError, match="conv_lstm1d"):
        reprune.measure_latency(model, np.zeros((1, 5, 6, 4), "float32"))
