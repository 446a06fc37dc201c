"""What a probe shows of one pass, row by row: responses of layers, and what weights read of them, against NumPy."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import reprune
from reprune.core.errors import StatisticsError
from reprune.keras.calibration.responses import Probe, Response, observe
from reprune.keras.tracing.graph import array, graph_of
from reprune.keras.tracing.record import record
from tests.helpers.keras_cells import Halves, SlicedLSTM
from tests.helpers.keras_models import error, in_double, outputs, some_plan
from tests.helpers.keras_zoo import randomise
from tests.keras.calibration.test_loops import lstm_loop, weights

L, K = keras.layers, keras.ops
KINDS = ["both", "wide", "attention", "heads", "merged", "conv", "transposed", "separable", "last"]


def shown(model: Any, batch: Any, *, readings: bool = True) -> dict[Any, list[Response]]:
    structure = record(model, batch, scope="all").structure()
    found: dict[Any, list[Response]] = {}
    for response in Probe(graph_of(model), structure, readings=readings).responses(batch):
        found.setdefault(response.key, []).append(response)
    return found


def by_time(values: Any) -> tuple[Any, Any]:
    """The rows of the first step of all sequences, then those of the next; and whose they are."""
    turned = np.moveaxis(values, 0, -2)
    return turned.reshape(-1, values.shape[-1]), np.tile(np.arange(len(values)), turned[..., 0, 0].size)


def by_sequence(values: Any) -> tuple[Any, Any]:
    """All rows of the first sequence, then those of the next; and whose they are."""
    rows = values.reshape(-1, values.shape[-1])
    return rows, np.arange(len(values)).repeat(len(rows) // len(values))


def check(found: dict[Any, list[Response]], wanted: dict[Any, tuple[Any, Any]]) -> None:
    for name, (rows, sequences) in wanted.items():
        (response,) = found[name]
        np.testing.assert_allclose(response.rows, rows, rtol=1e-6, atol=1e-6, err_msg=str(name))
        np.testing.assert_array_equal(response.sequences, sequences, err_msg=str(name))
        assert response.batch == sequences.max() + 1


def test_what_every_kind_of_weight_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    with in_double():
        x = keras.Input((4, 3))
        y = L.Bidirectional(L.GRU(2, return_sequences=True), name="both")(x)
        z = L.TimeDistributed(L.Dense(4, activation="tanh"), name="wide")(y)
        z = L.MultiHeadAttention(2, 3, value_dim=5, use_gate=True, name="attention")(z, y)
        z = L.EinsumDense("abc,cde->abed", (None, 3, 2), name="heads")(z)
        z = L.EinsumDense("abed,def->abf", (None, 4), name="merged")(z)
        z = L.Conv1D(4, 2, padding="same", name="conv")(z)
        z = L.Conv1DTranspose(5, 2, padding="same", name="transposed")(z)
        z = L.SeparableConv1D(4, 2, strides=2, depth_multiplier=2, name="separable")(z)
        model = randomise(keras.Model(x, L.Dense(2, name="out")(L.LSTM(3, name="last")(z))))
        batch = np.random.default_rng(0).normal(size=(3, 4, 3))
        made = keras.Model(x, [model.get_layer(name).output for name in KINDS])
        found = shown(model, batch)
        # What is wider is not kept together: its widths are shown, each where the first weight shows it.
        monkeypatch.setattr("reprune.keras.calibration.responses.WIDEST", 3)
        alone = shown(model, batch)
        seen = dict(zip(KINDS, outputs(made, batch), strict=True))

    attention, separable = model.get_layer("attention"), model.get_layer("separable")
    parts = {"query": "wide", "key": "both", "value": "both", "gate": "wide"}
    query, key, value, gate = (
        np.einsum("btd,dhe->bthe", seen[source], array(getattr(attention, f"_{part}_dense").kernel))
        + array(getattr(attention, f"_{part}_dense").bias)
        for part, source in parts.items()
    )
    chances = np.exp(np.einsum("bqhe,bkhe->bhqk", query, key) / np.sqrt(3))
    merged = np.einsum("bhqk,bkhe->bqeh", chances / chances.sum(-1, keepdims=True), value)
    merged *= 1 / (1 + np.exp(-np.moveaxis(gate, 2, 3)))
    taps = array(separable.depthwise_kernel)
    each = np.stack([np.einsum("btc,tcm->bcm", seen["transposed"][:, at : at + 2], taps) for at in (0, 2)], axis=1)
    states = seen["both"]
    wanted = {
        "both:forward": by_time(states[..., :2]),
        "both:backward": by_time(states[..., 2:]),
        ("wide/kernel", 0): by_sequence(states),
        **{(f"attention/{part}/kernel", 0): by_sequence(seen[source]) for part, source in parts.items()},
        ("attention/attention_output/kernel", 0): by_time(merged),
        ("heads/kernel", 0): by_sequence(seen["attention"]),
        ("merged/kernel", 1): by_sequence(np.moveaxis(seen["heads"], 2, 3)),
        ("conv/kernel", 1): by_time(seen["merged"]),
        ("transposed/kernel", 2): by_time(seen["conv"]),
        ("separable/pointwise_kernel", 1): by_time(each.reshape(3, 2, -1)),
        ("last/kernel", 0): by_time(seen["separable"]),
        ("out/kernel", 0): by_sequence(seen["last"]),
    }
    check(found, wanted)
    # A unit that is read at two places is shown twice.
    widths = {
        "wide:features": by_sequence(seen["wide"]),
        ("attention/attention_output/kernel", 0): by_time(merged),
        "attention:features": by_sequence(seen["attention"]),
        ("merged/kernel", 1): by_sequence(np.moveaxis(seen["heads"], 2, 3)),
        "merged:features": by_time(seen["merged"]),
        "conv:channels": by_time(seen["conv"]),
        "separable:channels": by_time(seen["separable"]),
    }
    for place, response in enumerate(alone.pop("transposed:channels")):
        check({place: [response]}, {place: by_time(each[..., place])})
    check(alone, widths)
    own = {key for key in found if str(key).count("both") or str(key).count("recurrent") or key == "last"}
    assert alone.keys() == {*widths, *own, ("out/kernel", 0)}


def test_masked_steps_are_no_rows_and_states_are_read_before_the_step() -> None:
    with in_double():
        x = keras.Input((4, 3))
        y = L.Bidirectional(L.GRU(2, return_sequences=True), name="both")(L.Masking()(x))
        shared = L.Dense(4, name="shared")
        summed = L.Add()([y, shared(y)])
        read = shared(summed)
        back = L.LSTM(2, go_backwards=True, return_sequences=True, name="back")(read)
        middle = L.LSTM(2, return_sequences=True, name="middle")(back)
        model = randomise(keras.Model(x, L.Dense(2, name="out")(L.LSTM(3, name="last")(middle))))
        batch = np.random.default_rng(0).normal(size=(3, 4, 3))
        batch[0, 2:] = batch[1, :1] = 0
        valid = batch.any(-1)
        found = shown(model, batch)
        both, summed, read, back, middle = outputs(keras.Model(x, [y, summed, read, back, middle]), batch)
    last = lstm_loop(middle, *weights(model.get_layer("last")), valid)

    def kept(rows: tuple[Any, Any], where: Any) -> tuple[Any, Any]:
        return rows[0][where.ravel()], rows[1][where.ravel()]

    fed = {
        # What a layer responds in its own order of time, when, and its first and last step.
        "both/forward": (both[..., :2], valid, [1, 3, 3]),
        "both/backward": (both[..., 2:], valid, [0, 1, 0]),
        "back": (back, valid[:, ::-1], [3, 2, 3]),
        "middle": (middle, valid, [1, 3, 3]),
        "last": (last, valid, [1, 3, 3]),
    }
    wanted = {(f"{name}/recurrent_kernel", 0): kept(by_time(rows), when.T) for name, (rows, when, _) in fed.items()}
    wanted |= {name.replace("/", ":"): wanted[f"{name}/recurrent_kernel", 0] for name in fed}
    wanted["back/kernel", 0] = kept(by_time(read), valid.T)
    wanted["middle/kernel", 0] = kept(by_time(back), valid.T)
    wanted["last/kernel", 0] = kept(by_time(middle), valid.T)
    wanted["out/kernel", 0] = by_sequence(last[:, -1])
    once, again = found.pop(("shared/kernel", 0))
    check(
        {"once": [once], "again": [again]},
        {"once": kept(by_sequence(both), valid), "again": kept(by_sequence(summed), valid)},
    )
    check(found, wanted)
    for name, (rows, _, ends) in fed.items():
        first, end = found[f"{name}/recurrent_kernel", 0][0].ends
        np.testing.assert_array_equal(first, np.zeros((3, rows.shape[-1])))
        np.testing.assert_allclose(end, rows[np.arange(3), ends], atol=1e-12)
    # Rows that are those which a recurrent weight reads need no statistics of their own.
    likes = {name: response.like for name, (response,) in found.items() if response.like}
    assert likes == {
        **{name.replace("/", ":"): (f"{name}/recurrent_kernel", 0) for name in fed},
        ("last/kernel", 0): ("middle/recurrent_kernel", 0),
    }


def test_masks_inside_of_steps_and_states_by_position() -> None:
    """A sequence without a valid step has no ends."""
    with in_double():
        x, start = keras.Input((2, 3, 3)), keras.Input((4,))
        each = L.TimeDistributed(L.LSTM(2, return_sequences=True), name="each")(L.Masking()(x))
        top = L.GRU(4, return_sequences=True, name="top")(each[:, 0], start, mask=K.any(x[:, 0] != 0, axis=-1))
        model = randomise(keras.Model([x, start], L.Dense(2, name="out")(top)))
        rng = np.random.default_rng(0)
        batch = [rng.normal(size=(3, 2, 3, 3)), rng.normal(size=(3, 4))]
        batch[0][0, :, 2:] = batch[0][1, 0] = 0
        found = shown(model, batch)
        (top,) = outputs(keras.Model(model.inputs, top), batch)
    flat, valid = batch[0].reshape(6, 3, 3), batch[0].any(-1)
    states = lstm_loop(flat, *weights(model.get_layer("each").layer), valid.reshape(6, 3))
    on = valid[:, 0].T.ravel()
    rows, sequences = by_time(top)
    check(
        found,
        {
            "top": (rows[on], sequences[on]),
            "each": tuple(part[valid.reshape(6, 3).T.ravel()] for part in by_time(states)),
        },
    )
    first, last = found["top/recurrent_kernel", 0][0].ends
    np.testing.assert_array_equal(first, batch[1][[0, 2]])
    np.testing.assert_allclose(last, top[[0, 2], [1, 2]], atol=1e-12)


def test_states_that_layers_start_from() -> None:
    """Given to both directions, to a stack of cells, or held from the batch before."""
    with in_double():
        x = keras.Input(batch_shape=(2, 3, 3))
        given = [keras.Input(batch_shape=(2, size)) for size in (2, 2, 2, 2, 4, 3, 3)]
        both = L.Bidirectional(L.LSTM(2, return_sequences=True), name="both")(x, initial_state=given[:4])
        stack = L.RNN([L.GRUCell(4), L.LSTMCell(3)], return_sequences=True, name="stack")
        stacked = stack(both, initial_state=[given[4], given[5:]])
        held = L.GRU(2, stateful=True, return_sequences=True, name="held")
        last = L.Bidirectional(L.GRU(2, stateful=True), name="last")(held(stacked))
        model = randomise(keras.Model([x, *given], L.Dense(2, name="out")(last)))
        batch = [np.random.default_rng(0).normal(size=value.shape) for value in (x, *given)]
        outputs(model, batch)
        before = [array(state) for state in graph_of(model).states()]
        found = shown(model, batch)
    starts = {"both/forward": batch[1], "both/backward": batch[3], "stack/l0": batch[5], "stack/l1": batch[6]}
    starts |= dict(zip(("held", "last/forward", "last/backward"), before, strict=True))
    for name, start in starts.items():
        np.testing.assert_allclose(found[f"{name}/recurrent_kernel", 0][0].ends[0], start, atol=1e-12, err_msg=name)
        assert np.abs(start).min() > 0


# That the convolution does not hand a mask on is Keras's to warn about.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_layer_that_runs_twice_and_a_mask_of_other_steps() -> None:
    """Strides leave out steps: the mask of what was read does not fit what the second half of a convolution reads."""
    with in_double():
        first, second = keras.Input((4, 3)), keras.Input((5, 3))
        tower = L.GRU(4, return_sequences=True, name="tower")
        one, other = (tower(L.Masking()(x)) for x in (first, second))
        strided = L.SeparableConv1D(2, 2, strides=2, name="strided")(one)
        ends = [L.Dense(2, name="flat")(strided[:, -1]), L.Dense(2, name="dense")(other)]
        model = randomise(keras.Model([first, second], ends))
        batch = [np.random.default_rng(0).normal(size=(3, steps, 3)) for steps in (4, 5)]
        batch[0][1, 2:] = batch[1][0, 1:] = 0
        structure = record(model, batch).structure()
        found, statistics = shown(model, batch), observe(model, structure, [batch, batch], readings=True)
        states = outputs(keras.Model(model.inputs, [one, other]), batch)
    valid = [values.any(-1) for values in batch]
    rows = [values[where] for values, where in zip(states, valid, strict=True)]
    taps = array(model.get_layer("strided").depthwise_kernel)
    each = np.stack([np.einsum("btc,tcm->bcm", states[0][:, at : at + 2], taps) for at in (0, 2)], axis=1)
    check(
        found,
        {
            ("strided/pointwise_kernel", 1): by_time(each.reshape(3, 2, -1)),
            ("dense/kernel", 0): (rows[1], np.nonzero(valid[1])[0]),
        },
    )
    assert [response.like for response in found["tower"]] == [("tower/recurrent_kernel", 0)] * 2
    assert found["dense/kernel", 0][0].like is None
    whole = np.concatenate(rows)
    np.testing.assert_allclose(statistics["tower"].mean, whole.mean(0), rtol=1e-9)
    np.testing.assert_allclose(statistics["tower"].covariance, np.cov(whole.T, bias=True), rtol=1e-9)
    assert statistics["tower"].count == statistics.readings["tower/recurrent_kernel", 0].count == 2 * len(whole)
    with pytest.raises(StatisticsError, match="empty"):
        observe(model, structure, [])


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow needs a GPU, or oneDNN, for them")
def test_channels_that_come_first() -> None:
    with in_double():
        first = {"padding": "same", "data_format": "channels_first"}
        x, states = keras.Input((2, 3, 4)), [keras.Input((5, 4)) for _ in range(2)]
        one = L.ConvLSTM1D(5, 3, return_sequences=True, name="one", **first)(x, initial_state=states)
        both = L.Bidirectional(L.ConvLSTM1D(2, 3, return_sequences=True, **first), name="both")(one)
        conv = L.Conv1D(3, 2, name="conv", **first)(both[:, -1])
        apart = L.SeparableConv1D(6, 2, depth_multiplier=2, name="separable", **first)(conv)
        made = L.Conv1D(3, 2, name="made", **first)(apart)
        model = randomise(keras.Model([x, *states], made))
        batch = [np.random.default_rng(0).normal(size=(3, *value.shape[1:])) for value in (x, *states)]
        found = shown(model, batch)
        plan = some_plan(record(model, batch, scope="all").structure())
        assert plan.kept["both:forward"] == plan.kept["both:backward"] == [1]
        small, masked = reprune.apply(model, plan), reprune.mask(model, plan)
        assert error(outputs(masked, batch), outputs(small, batch)) < 1e-6
        one, both, conv, apart = outputs(keras.Model(model.inputs, [one, both, conv, apart]), batch)
    taps, padded = array(model.get_layer("separable").depthwise_kernel), np.pad(conv, ((0, 0), (0, 0), (0, 1)))
    each = np.stack([np.einsum("bct,tcm->bcm", padded[:, :, at : at + 2], taps) for at in range(8)], axis=1)
    wanted = {
        "one": by_time(np.moveaxis(one, 2, -1)),
        "both:forward": by_time(np.moveaxis(both[..., :4], 2, -1)),
        "both:backward": by_time(np.moveaxis(both[:, ::-1, :, 4:], 2, -1)),
        ("conv/kernel", 1): by_time(np.moveaxis(both[:, -1], 1, -1)),
        ("separable/pointwise_kernel", 1): by_time(each.reshape(3, 8, -1)),
        ("made/kernel", 1): by_time(np.moveaxis(apart, 1, -1)),
    }
    check(found, wanted)


def test_cells_that_learn_where_to_start_and_cells_that_are_not_followed() -> None:
    """What comes after the latter is seen all the same, and both directions of a sum apart."""
    with in_double():
        x = keras.Input((3, 3))
        layer = L.RNN(SlicedLSTM(4), return_sequences=True, name="rnn")
        halves = L.RNN(Halves(6), return_sequences=True, name="halves")(layer(x))
        both = L.Bidirectional(L.GRU(2, return_sequences=True), merge_mode="sum", name="both")
        model = randomise(keras.Model(x, L.Dense(2, name="out")(both(halves))))
        batch = np.random.default_rng(0).normal(size=(2, 3, 3))
        found = shown(model, batch)
        steps = [array(L.RNN(layer.cell, return_state=True)(batch[:, : step + 1])[1]) for step in range(3)]
        fore, back = outputs(keras.Model(x, [both.forward_layer(halves), both.backward_layer(halves)]), batch)
    check(
        found, {"rnn": by_time(np.stack(steps, axis=1)), "both:forward": by_time(fore), "both:backward": by_time(back)}
    )
    assert "halves" not in found
