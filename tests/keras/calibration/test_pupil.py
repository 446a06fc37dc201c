"""Keras models that answer like the dense one: the head is refitted, and plan and masked model have it, too."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import reprune
from reprune.core.answers.answers import Answers, Sample
from reprune.core.answers.gauss_newton import Seen
from reprune.keras.calibration.pupil import Pupil, _cuts, answering, made_by_sigmoid
from reprune.keras.calibration.readers import argument
from reprune.keras.tracing.graph import graph_of
from reprune.keras.tracing.record import record, trace
from reprune.verbs.panel import Panel

L = keras.layers


@pytest.fixture
def without_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers alone are refitted."""
    monkeypatch.setattr(Panel, "regated", lambda panel, value, plan: plan)


@pytest.mark.usefixtures("without_gates")
def test_the_head_is_refitted() -> None:
    """Not what the features of another dense layer come of, which lose some, too."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 3))
    both = L.Bidirectional(L.LSTM(6, return_sequences=True))(inputs)
    features = L.Dense(6, "relu", name="middle")(L.LSTM(8)(both))
    model = keras.Model(inputs, L.Dense(4, name="head")(features))
    head = model.get_layer("head")
    head.kernel.assign(8 * head.kernel)
    rng = np.random.default_rng(0)
    batches = [2 * rng.normal(size=(96, 5, 3)).astype("float32") for _ in range(4)]
    result = reprune.prune(model, batches, 0.7, scope="all")
    assert {refit.tensor for refit in result.plan.refits} == {"head/kernel", "head/bias"}
    masked = reprune.mask(model, reprune.Plan.from_json(result.plan.to_json()))
    np.testing.assert_allclose(np.asarray(result.model(batches[0])), np.asarray(masked(batches[0])), atol=1e-5)


def test_answers_are_those_of_the_pass_that_observes(monkeypatch: pytest.MonkeyPatch) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((20, 3))
    states, last = L.GRU(4, return_state=True)(inputs)
    model = keras.Model(inputs, {"chances": L.Dense(2, activation="sigmoid")(states), "state": L.Dense(3)(last)})
    batches = [np.random.default_rng(place).normal(size=(6, 20, 3)).astype("float32") for place in range(3)]
    told: list[Any] = []
    answered = Sample.answered
    monkeypatch.setattr(Sample, "answered", lambda sample, outputs: (told.append(outputs), answered(sample, outputs)))
    reprune.calibrate(model, batches, methods=["reconstruct"])
    for batch, outputs in zip(batches, told, strict=True):
        for found, wanted in zip(outputs, keras.tree.flatten(model(batch)), strict=True):
            np.testing.assert_allclose(found, np.asarray(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrap", [L.Bidirectional, lambda layer: keras.Sequential([layer])], ids=["both", "model"])
def test_the_head_comes_after_layers_that_hold_recurrent_ones(wrap: Any) -> None:
    inputs, beside = keras.Input((5, 3)), keras.Input((2,))
    last = wrap(L.GRU(2))(inputs)
    model = keras.Model([inputs, beside], L.Dense(2)(L.Concatenate()([last, beside])))
    assert {id(cut) for cut in _cuts(model)} == {id(last), id(beside)}


@pytest.mark.usefixtures("without_gates")
def test_attention_reads_what_each_of_its_kernels_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    keras.utils.set_random_seed(0)
    ask, tell = keras.Input((3, 2), name="ask"), keras.Input((4, 2), name="tell")
    query = L.LSTM(6, return_sequences=True, name="query")(ask)
    value = L.LSTM(8, return_sequences=True, name="value")(tell)
    key = L.LSTM(6, return_sequences=True, name="key")(tell)
    once = L.MultiHeadAttention(2, 3, output_shape=4, name="once")(query, value)
    both = L.MultiHeadAttention(2, 3, output_shape=4, name="both")(query, key=key, value=value)
    model = keras.Model([ask, tell], L.Dense(3, name="head")(L.Concatenate()([once, both])))
    model.get_layer("head").kernel.assign(8 * model.get_layer("head").kernel)
    rng = np.random.default_rng(0)
    batches = [[rng.normal(0, 2, (64, steps, 2)).astype("float32") for steps in (3, 4)] for _ in range(4)]
    seen: dict[str, np.ndarray] = {}
    add = Seen.add
    monkeypatch.setattr(Seen, "add", lambda self, name, rows: (seen.update({name: rows}), add(self, name, rows)))
    result = reprune.prune(model, batches, 0.7, method="reconstruct")

    made = [result.model.get_layer(name).output for name in ("query", "value", "key")]
    given = keras.Model(result.model.inputs, made)(batches[-1])
    query, value, key = (np.asarray(rows).reshape(-1, rows.shape[-1]) for rows in given)
    wanted = {
        "once/query/kernel": query, "once/key/kernel": value, "once/value/kernel": value,
        "both/query/kernel": query, "both/key/kernel": key, "both/value/kernel": value,
    }  # fmt: skip
    for name, rows in wanted.items():
        np.testing.assert_allclose(seen[name], rows, rtol=1e-5, atol=1e-6, err_msg=name)
    assert {refit.tensor for refit in result.plan.refits} == wanted.keys()
    masked = reprune.mask(model, reprune.Plan.from_json(result.plan.to_json()))
    np.testing.assert_allclose(np.asarray(result.model(batches[0])), np.asarray(masked(batches[0])), atol=1e-5)


def test_outputs_that_a_sigmoid_made() -> None:
    x = keras.Input((5, 3))
    dense = [L.Dense(2, activation="sigmoid"), L.Dense(2), L.TimeDistributed(L.Dense(2, activation="sigmoid"))]
    made = [*(layer(x) for layer in dense), keras.ops.sigmoid(x), keras.ops.tanh(x), L.Activation("sigmoid")(x)]
    assert made_by_sigmoid(graph_of(keras.Model(x, made))) == [0, 2, 3, 5]


def test_what_the_heads_of_attention_hand_on_is_not_seen_in_the_head() -> None:
    x = keras.Input((5, 3))
    states = L.GRU(4, return_sequences=True)(x)
    model = keras.Model(x, L.MultiHeadAttention(2, 3, name="attention")(states, states))
    batch = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
    structure = record(model, batch, scope="all").structure()
    assert ("attention/attention_output/kernel", 0) in {(c.tensor, c.axis) for c in structure.consumers}
    assert Pupil(model, structure, Answers([batch], answering(model, None)), None).weights == []


@pytest.mark.parametrize("less", [False, True])
def test_a_head_that_answers_otherwise_or_a_model_that_is_given_less(
    less: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of them is refitted; the second is run as a whole."""
    x, more = keras.Input((5, 3), name="x"), keras.Input((2,), optional=True, name="more")
    head = L.Dense(2, name="head")(L.GRU(4)(x))
    model = keras.Model({"x": x, "more": more} if less else x, head)
    model.get_layer("head").kernel.assign(50 * np.ones((4, 2)))
    batch = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
    given = {"x": batch, "more": None} if less else batch
    answers, structure = Answers([given], answering(model, None)), trace(model, given)
    pupil = Pupil(model, structure, answers, None)
    assert [weight.tensor for weight in pupil.weights] == ([] if less else ["head/kernel"])
    np.testing.assert_allclose(pupil.run(0)[0], np.asarray(model(given)), rtol=1e-5)
    answer = Pupil._answer
    monkeypatch.setattr(Pupil, "_answer", lambda pupil, place: [1.5 * value for value in answer(pupil, place)])
    assert Pupil(model, structure, answers, None).weights == []


def test_a_key_that_is_not_given_is_the_value() -> None:
    for args, given in [(("q", "v"), {}), (("q", "v", None, "mask"), {}), (("q",), {"key": None, "value": "v"})]:
        assert [argument(place, args, given) for place in range(3)] == ["q", "v", "v"]
    assert argument(2, (), {"key": "k", "value": "v", "query": "q"}) == "k"
