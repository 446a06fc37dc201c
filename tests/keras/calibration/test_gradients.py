"""How much answers depend on weights: PyTorch's gradients on the same weights, and those of a linear head by hand."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

from reprune.core.answers.answers import Answers, Meaning
from reprune.core.evidence.readings import random_signs
from reprune.keras.calibration.importance import SEQUENCES, OutputImportance
from reprune.keras.calibration.labelled import loss_gradients
from reprune.keras.calibration.pupil import Pupil, answering
from reprune.keras.tracing.graph import array, graph_of
from reprune.keras.tracing.record import trace
from tests.helpers.keras_models import in_double, outputs
from tests.helpers.keras_zoo import randomise
from tests.keras.test_against_torch import kernels

L, K = keras.layers, keras.ops


def test_squared_gradients_of_random_projections_of_all_outputs() -> None:
    """Numbers of a class have no gradient, and a weight that only they depend on is left out."""
    torch.manual_seed(0)
    rnn, first, second = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2), nn.Linear(4, 5)
    with in_double():
        x = keras.Input((3, 3))
        layers = L.LSTM(4, return_sequences=True, name="rnn"), L.Dense(2, name="first"), L.Dense(5, name="second")
        states = layers[0](x)
        chosen = K.argmax(L.Dense(3, name="lost")(states), axis=-1)
        model = randomise(keras.Model(x, [layers[1](states), chosen, layers[2](states[:, -1])]))
    for layer, values in zip(layers, (kernels(rnn, "l0"), *map(linear, (first, second))), strict=True):
        layer.set_weights(values)
    batch = np.random.default_rng(0).normal(size=(SEQUENCES + 8, 3, 3))
    importance = OutputImportance(graph_of(model), trace(model, batch).consumers)
    found = importance([batch], draws=2, seed=3)

    rng, tensors = np.random.default_rng(3), (rnn.weight_hh_l0, first.weight, second.weight)
    wanted = [torch.tensor(0.0)] * len(tensors)
    for _ in range(2):
        states = rnn.double()(torch.from_numpy(batch[:SEQUENCES]))[0]
        made = first.double()(states), second.double()(states[:, -1])
        signs = [torch.from_numpy(random_signs(rng, tuple(out.shape))) for out in made]
        gradients = torch.autograd.grad(sum((sign * out).sum() for sign, out in zip(signs, made, strict=True)), tensors)
        wanted = [total + gradient.square().sum(1) / 2 for total, gradient in zip(wanted, gradients, strict=True)]
    # On JAX there is no telling what nothing depends on from what makes no difference.
    assert not np.any(found.pop(("lost/kernel", 0), 0.0))
    names = ("rnn/recurrent_kernel", "first/kernel", "second/kernel")
    assert found.keys() == {(name, 0) for name in names}
    for name, values in zip(names, wanted, strict=True):
        np.testing.assert_allclose(found[name, 0], values, rtol=1e-5)
    assert importance([None], draws=1, seed=0) == {}


def linear(layer: nn.Linear) -> list[Any]:
    return [layer.weight.detach().numpy().T, layer.bias.detach().numpy()]


def test_a_model_without_gradients_says_nothing_of_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise LookupError("No gradient is defined for this operation.")

    monkeypatch.setattr("reprune.keras.calibration.importance.vjp", refused)
    model, batch = keras.Sequential([keras.Input((3, 3)), L.LSTM(4), L.Dense(2)]), np.ones((2, 3, 3), dtype="float32")
    assert OutputImportance(graph_of(model), trace(model, batch).consumers)([batch], draws=1, seed=0) == {}


def test_gradient_of_a_loss_is_the_mean_over_batches_and_zero_where_it_does_not_look() -> None:
    with in_double():
        x = keras.Input((4, 3))
        normed = L.Normalization(name="normed")  # It counts what it has seen: whole numbers have no gradient.
        normed.adapt(np.zeros((2, 4, 3)))
        states = L.GRU(5, return_sequences=True)(normed(x))
        model = randomise(keras.Model(x, [L.Dense(2, name="one")(states), L.Dense(3, name="other")(states)]))
        batches = [np.random.default_rng(size).normal(size=(size, 4, 3)) for size in (2, 5)]
        seen, graph = keras.Model(x, states), graph_of(model)
        found = loss_gradients(graph, model, batches, lambda model, batch: K.mean(K.square(model(batch)[0])))
        read = [array(seen(batch)).reshape(-1, 5) for batch in batches]
        made = [outputs(model, batch)[0].reshape(-1, 2) for batch in batches]
    slopes = [2 * values / values.size for values in made]
    wanted = {
        "one/kernel": sum(z.T @ slope for z, slope in zip(read, slopes, strict=True)) / 2,
        "one/bias": sum(slope.sum(0) for slope in slopes) / 2,
        "other/kernel": np.zeros((5, 3)),
    }
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-9)
    assert graph.weights().keys() - found.keys() == {"normed/count"}


def test_gradients_of_linear_heads() -> None:
    """Of two outputs; the third, of a weight that reads twice, is a state that the caller carries, and no answer."""
    with in_double():
        x = keras.Input((4, 3))
        states = L.GRU(5, return_sequences=True, name="gru")(x)
        one, other = L.TimeDistributed(L.Dense(2), name="one"), L.Dense(3, use_bias=False, name="other")
        inner, twice = keras.Sequential([keras.Input((5,)), other], name="inner"), L.Dense(1, name="twice")
        carried = L.Add()([twice(states[:, 0]), twice(states[:, 1])])
        dense = randomise(keras.Model(x, [one(states), inner(states[:, -1]), carried]))
        small = randomise(keras.models.clone_model(dense), 1)
        rng = np.random.default_rng(0)
        batches = [rng.normal(size=(8, 4, 3)) for _ in range(2)]
        answers = Answers(batches, answering(dense, None), meaning=Meaning(states=[2]))
        pupil = Pupil(small, trace(small, batches[0]), answers, None)
        seen = keras.Model(small.inputs[0], small.layers[1].output)
        read = [array(seen(batch)) for batch in batches]

    for place, batch in enumerate(batches):
        for found, wanted in zip(pupil.run(place), outputs(small, batch), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-12)
    rows = {"one/kernel": np.concatenate(read).reshape(-1, 5), "inner/other/kernel": np.concatenate(read)[:, -1]}
    rows["one/kernel"] = np.column_stack([rows["one/kernel"], np.ones(64)])
    assert {(weight.tensor, weight.axis, weight.bias) for weight in pupil.weights} == {
        ("one/kernel", 0, "one/bias"), ("inner/other/kernel", 0, None)
    }  # fmt: skip
    for weight in pupil.weights:
        found = rows[weight.tensor]
        np.testing.assert_allclose(weight.moments, found.T @ found / len(found), rtol=1e-9)

    names = ["one/bias", "inner/other/kernel", "one/kernel", "twice/kernel", "gru/kernel"]
    rng = np.random.default_rng(5)
    for place, given in enumerate(pupil.gradients(names, np.random.default_rng(5))):
        pulled = list(answers.cotangents(place, pupil.run(place), rng))
        assert [which for which, *_ in pulled] == [0, 1]
        for kind, found in enumerate(given, 1):
            one, other = pulled[0][kind], pulled[1][kind]
            wanted = [one.sum((0, 1)), read[place][:, -1].T @ other, np.einsum("btd,btc->dc", read[place], one)]
            for name, values in zip(names, [*wanted, np.zeros((5, 1)), np.zeros((3, 15))], strict=True):
                np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-12, err_msg=name)
    assert place == 1

    pupil.write({"one/bias": np.array([3.0, 4.0])})
    np.testing.assert_array_equal(pupil.read(["one/bias"])["one/bias"], [3.0, 4.0])
    np.testing.assert_allclose(
        pupil.run(0)[0], read[0] @ array(small.get_layer("one").layer.kernel) + [3, 4], atol=1e-12
    )
