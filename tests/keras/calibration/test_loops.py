"""Recurrent layers worked out in NumPy, step by step: what masking and pruning mean, and what is observed."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import reprune.keras
from reprune.core.errors import StatisticsError
from reprune.keras.tracing.graph import array, graph_of
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import RELATIVE, error, outputs, some_plan

L, T, F = zoo.L, zoo.T, zoo.F


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def lstm_loop(x: Any, kernel: Any, recurrent: Any, bias: Any, valid: Any | None = None) -> Any:
    """All hidden states (batch × time × units); masked steps repeat the state before."""
    h = c = np.zeros((len(x), recurrent.shape[0]))
    states = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=-1)
        new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        new_h = sigmoid(o) * np.tanh(new_c)
        on = np.ones((len(x), 1), bool) if valid is None else valid[:, t, None]
        h, c = np.where(on, new_h, h), np.where(on, new_c, c)
        states.append(h)
    return np.stack(states, axis=1)


def gru_loop(x: Any, kernel: Any, recurrent: Any, bias: Any, reset_after: bool) -> Any:
    h = np.zeros((len(x), recurrent.shape[0]))
    states = []
    for t in range(x.shape[1]):
        if reset_after:
            xz, xr, xh = np.split(x[:, t] @ kernel + bias[0], 3, axis=-1)
            hz, hr, hh = np.split(h @ recurrent + bias[1], 3, axis=-1)
            z, r = sigmoid(xz + hz), sigmoid(xr + hr)
            candidate = np.tanh(xh + r * hh)
        else:
            xz, xr, xh = np.split(x[:, t] @ kernel + bias, 3, axis=-1)
            rz, rr, rh = np.split(recurrent, 3, axis=-1)
            z, r = sigmoid(xz + h @ rz), sigmoid(xr + h @ rr)
            candidate = np.tanh(xh + (r * h) @ rh)
        h = z * h + (1 - z) * candidate
        states.append(h)
    return np.stack(states, axis=1)


def weights(layer: Any) -> list[Any]:
    return [array(weight).astype("float64") for weight in layer.weights]


def test_pruned_lstm_is_the_loop_without_the_units() -> None:
    model = zoo.sequential(L.LSTM(6), L.Dense(2))
    x = zoo.inputs_for(model)
    plan = some_plan(reprune.keras.trace(model, x), seed=4)
    ((_, kept),) = plan.kept.items()
    kernel, recurrent, bias = weights(model.layers[0])
    columns = np.concatenate([gate * 6 + np.array(kept) for gate in range(4)])
    h = lstm_loop(x, kernel[:, columns], recurrent[np.ix_(kept, columns)], bias[columns])[:, -1]
    head, offset = weights(model.layers[1])
    expected = h @ head[kept] + offset
    np.testing.assert_allclose(outputs(reprune.keras.apply(model, plan), x)[0], expected, rtol=1e-4, atol=1e-5)
    # And the full-size loop in which nothing reads the removed units.
    gone = np.setdiff1d(np.arange(6), kept)
    recurrent[gone], head[gone] = 0, 0
    expected = lstm_loop(x, kernel, recurrent, bias)[:, -1] @ head + offset
    np.testing.assert_allclose(outputs(reprune.keras.mask(model, plan), x)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reset_after", [True, False])
def test_pruned_gru_is_the_loop_without_the_units(reset_after: bool) -> None:
    model = zoo.sequential(L.GRU(6, reset_after=reset_after), L.Dense(2))
    x = zoo.inputs_for(model)
    plan = some_plan(reprune.keras.trace(model, x), seed=5)
    ((_, kept),) = plan.kept.items()
    kernel, recurrent, bias = weights(model.layers[0])
    columns = np.concatenate([gate * 6 + np.array(kept) for gate in range(3)])
    states = gru_loop(x, kernel[:, columns], recurrent[np.ix_(kept, columns)], bias[..., columns], reset_after)
    head, offset = weights(model.layers[1])
    expected = states[:, -1] @ head[kept] + offset
    np.testing.assert_allclose(outputs(reprune.keras.apply(model, plan), x)[0], expected, rtol=1e-4, atol=1e-5)


def check(moments: Any, rows: Any) -> None:
    rows = rows.reshape(-1, rows.shape[-1])
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), rtol=1e-3, atol=1e-6)


def test_observes_every_valid_step_of_both_directions() -> None:
    model = zoo.sequential(L.Masking(0.0), zoo.both(4), L.LSTM(5), L.Dense(2), shape=(None, F))
    rng = np.random.default_rng(0)
    batches, valids = [], []
    for steps in (5, 7):
        x = rng.normal(size=(3, steps, F)).astype("float32")
        valid = np.arange(steps)[None] < np.array([[steps], [3], [2]])
        batches.append(x * valid[..., None])
        valids.append(valid)
    structure = reprune.keras.trace(model, batches[0])
    moments = reprune.keras.observe(model, structure, batches)
    forward, backward = (weights(part) for part in (model.layers[1].forward_layer, model.layers[1].backward_layer))
    second = weights(model.layers[2])
    seen: dict[str, list[Any]] = {name: [] for name in structure.layers}
    for x, valid in zip(batches, valids, strict=True):
        fore = lstm_loop(x, *forward, valid)
        back = lstm_loop(x[:, ::-1], *backward, valid[:, ::-1])[:, ::-1]
        above = lstm_loop(np.concatenate([fore, back], -1) * valid[..., None], *second, valid)
        for name, states in zip(seen, (fore, back, above), strict=True):
            seen[name].append(states[valid])
    for name, rows in seen.items():
        check(moments[name], np.concatenate(rows))


def fed_back(states: Any, valid: Any, start: Any = None) -> Any:
    """The states that the valid steps begin from, one row for each, out of those that they end with."""
    start = np.zeros_like(states[:, 0]) if start is None else start
    return np.concatenate([start[:, None], states[:, :-1]], axis=1)[valid]


def check_exact(model: Any, batches: Any, expected: list[tuple[Any, Any]]) -> None:
    """What the recurrent kernels of cells read."""
    calibration = reprune.keras.calibrate(model, batches, methods=["reconstruct"])
    found = {reading.consumer.tensor: reading.exact for reading in calibration._evidence.readings}
    names = {id(weight): name for name, weight in graph_of(model).weights().items()}
    for cell, rows in expected:
        tensor = names[id(cell.recurrent_kernel)]
        np.testing.assert_allclose(found[tensor].mean, rows.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[tensor].matrix, np.cov(rows.T, bias=True), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("padding", ["after", "before"])
def test_recurrent_kernels_read_the_states_before_the_steps(padding: str) -> None:
    model = zoo.sequential(L.Masking(0.0), zoo.both(4), L.LSTM(5), L.Dense(2), shape=(None, F))
    valid = np.arange(7)[None] < np.array([[7], [3], [2], [5]])
    valid = valid[:, ::-1] if padding == "before" else valid
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(4, 7, F)).astype("float32") * valid[..., None] for _ in range(8)]
    forward, backward = (weights(part) for part in (model.layers[1].forward_layer, model.layers[1].backward_layer))
    second = weights(model.layers[2])
    read: list[list[Any]] = [[], [], []]
    for x in batches:
        fore, back = lstm_loop(x, *forward, valid), lstm_loop(x[:, ::-1], *backward, valid[:, ::-1])
        both = np.concatenate([fore, back[:, ::-1]], -1) * valid[..., None]
        above = lstm_loop(both, *second, valid)
        for rows, states, on in zip(read, (fore, back, above), (valid, valid[:, ::-1], valid), strict=True):
            rows.append(fed_back(states, on))
    layers = (model.layers[1].forward_layer, model.layers[1].backward_layer, model.layers[2])
    check_exact(model, batches, [(layer.cell, np.concatenate(rows)) for layer, rows in zip(layers, read, strict=True)])


def test_recurrent_kernels_read_the_states_that_are_given() -> None:
    model = zoo.encoder_decoder(L.GRU)
    inputs = [zoo.inputs_for(model, 20, seed) for seed in range(4)]
    encoder, decoder = (layer for layer in model.layers if isinstance(layer, L.GRU))
    every = keras.Model(model.inputs, decoder.output)
    read = []
    for batch in inputs:
        start = gru_loop(batch[0], *weights(encoder), reset_after=True)[:, -1]
        states = array(every(batch)).astype("float64")
        read.append(fed_back(states, np.ones(states.shape[:2], bool), start))
    check_exact(model, inputs, [(decoder.cell, np.concatenate(read))])


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_observes_one_layer(backwards: bool, sequences: bool) -> None:
    model = zoo.sequential(L.LSTM(4, go_backwards=backwards, return_sequences=sequences), L.Dense(2))
    x = zoo.inputs_for(model, 4)
    structure = reprune.keras.trace(model, x)
    moments = reprune.keras.observe(model, structure, [x])
    turned = x[:, ::-1] if backwards else x
    check(next(iter(moments.values())), lstm_loop(turned, *weights(model.layers[0])))


def test_observes_cells_of_a_stack_and_layers_under_time_distributed() -> None:
    model = zoo.sequential(
        L.TimeDistributed(L.RNN([L.LSTMCell(4), L.LSTMCell(3)])), L.Flatten(), L.Dense(2), shape=(2, T, F)
    )
    x = zoo.inputs_for(model, 3)
    structure = reprune.keras.trace(model, x)
    moments = reprune.keras.observe(model, structure, [x])
    first, second = (weights(cell) for cell in model.layers[0].layer.cell.cells)
    below = lstm_loop(x.reshape(-1, T, F), *first)
    check(moments[next(iter(structure.layers))], below)
    check(moments[list(structure.layers)[1]], lstm_loop(below, *second))


def test_observes_cells_that_the_model_calls_itself() -> None:
    stack = L.StackedRNNCells([L.LSTMCell(4), L.LSTMCell(3)])

    def loop(x: Any) -> Any:
        zeros = [[keras.ops.repeat(0 * x[:, 0, :1], units, axis=1)] * 2 for units in (4, 3)]
        out, states = stack(x[:, 0], zeros)
        for step in range(1, T):
            out, states = stack(x[:, step], states)
        return L.Dense(2)(out)

    model = zoo.functional(loop)
    x = zoo.inputs_for(model, 3)
    structure = reprune.keras.trace(model, x)
    found, below = reprune.keras.observe(model, structure, [x]), x
    for cell, layer in zip(stack.cells, structure.layers, strict=True):
        below = lstm_loop(below, *weights(cell))
        check(found[layer], below)


def test_observes_from_given_states() -> None:
    model = zoo.encoder_decoder(L.GRU)
    inputs = zoo.inputs_for(model, 4)
    structure = reprune.keras.trace(model, inputs)
    moments = reprune.keras.observe(model, structure, [inputs])
    encoder, decoder = (layer for layer in model.layers if isinstance(layer, L.GRU))
    sequences = keras.Model(model.inputs, decoder.output)(inputs)
    check(moments[decoder.name], array(sequences))
    check(moments[encoder.name], gru_loop(inputs[0], *weights(encoder), reset_after=True))


def test_stateful_layers_end_where_they_began() -> None:
    model = zoo.sequential(L.LSTM(4, stateful=True), L.Dense(2), batch_size=2)
    x = zoo.inputs_for(model)
    model(x)
    before = [array(state) for state in model.layers[0].states]
    assert before[0].any()
    result = reprune.keras.prune(model, [x, x], ratio=0.5)
    assert all(np.array_equal(a, array(b)) for a, b in zip(before, model.layers[0].states, strict=True))
    kept = next(iter(result.plan.kept.values()))
    for old, new in zip(before, result.model.layers[0].states, strict=True):
        np.testing.assert_array_equal(array(new), old[:, kept])


@pytest.mark.parametrize("two_ways", [False, True])
def test_pruned_stateful_layers_carry_their_states_on(two_ways: bool) -> None:
    """Three batches one after the other, the first seen before the surgery; then a fresh start."""
    layer = L.GRU(5, stateful=True)
    model = zoo.sequential(L.Bidirectional(layer) if two_ways else layer, L.Dense(2), batch_size=2)
    first, second, third = (zoo.inputs_for(model, 2, seed) for seed in range(3))
    plan = some_plan(reprune.keras.trace(model, first))
    model(first)
    small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
    for held, whole in zip(*(keras.tree.flatten(each.layers[0].states) for each in (model, masked)), strict=True):
        np.testing.assert_array_equal(array(whole), array(held))
    for batch in (second, third):
        assert error(outputs(masked, batch), outputs(small, batch)) < RELATIVE
    going_on = outputs(small, third)
    for each in (small, masked):
        each.layers[0].reset_states()
    fresh = outputs(small, third)
    assert error(outputs(masked, third), fresh) < RELATIVE
    assert error(going_on, fresh) > 1e-4


def test_nan_in_the_responses_names_the_layer() -> None:
    model = zoo.sequential(L.LSTM(4, name="broken"), L.Dense(2))
    x = zoo.inputs_for(model, 40)
    x[0, 0, 0] = np.nan
    with pytest.raises(StatisticsError, match="broken"):
        reprune.keras.prune(model, [x], ratio=0.5, verify=False)
