"""Widths beside recurrent units: the pruned model computes what the masked one does, in double precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

import reprune
import reprune.keras
from reprune.core.budget.cost import CostModel
from reprune.core.folding.compensation import COMPENSATIONS
from reprune.core.plan import Plan
from reprune.keras.tracing.graph import array, graph_of
from tests.helpers.keras_models import error, in_double, outputs, parameters, some_plan, weights_of
from tests.helpers.keras_zoo import inputs_for, randomise

L = keras.layers


def separable(x: Any) -> Any:
    y = L.SeparableConv1D(6, 3, padding="same", depth_multiplier=2, activation="tanh")(x)
    y = L.DepthwiseConv1D(2, depth_multiplier=2, activation="relu")(y)
    y = L.SeparableConv1D(4, 3, strides=2)(y)
    return L.Dense(2)(L.GRU(4)(y))


def stacked_maps(x: Any) -> Any:
    y = L.Conv2D(4, 3, padding="same", activation="relu")(x)
    y = L.Concatenate()([y, L.Conv2D(4, 1)(x)])
    y = L.Add()([L.Conv2D(8, 3, padding="same")(y), y])
    y = L.UpSampling2D()(L.AveragePooling2D(2)(L.PReLU(shared_axes=[1, 2])(y)))
    y = L.Conv2DTranspose(6, 2, strides=2, activation="tanh")(y)
    return L.Dense(3)(L.Flatten()(L.AveragePooling2D(4)(y)))


def in_groups(x: Any) -> Any:
    """Two channels in, one or two out, in each of three groups; norms over the same groups and over each channel."""
    y = L.Conv1D(6, 3, groups=3, padding="same", activation="relu")(L.Conv1D(6, 3)(x))
    y = L.GroupNormalization(3, center=False)(L.Add()([y, L.Conv1D(6, 1)(y)]))
    y = L.Conv1D(3, 3, groups=3, padding="same")(L.GroupNormalization(-1)(y))
    return L.Dense(2)(L.Bidirectional(L.LSTM(4))(L.Conv1D(6, 2, groups=3, activation="tanh")(y)))


def excited(x: Any) -> Any:
    y = L.BatchNormalization()(L.Conv1D(6, 3, activation="relu")(x))
    gate = L.Dense(6, activation="sigmoid")(L.Dense(4, activation="relu")(L.GlobalAveragePooling1D()(y)))
    y = L.Multiply()([y, L.Reshape((1, 6))(gate)])
    return L.Dense(2)(L.Bidirectional(L.LSTM(4))(y))


def equations(x: Any) -> Any:
    y = L.EinsumDense("...x,xy->...y", 6, bias_axes="y", activation="tanh")(x)
    heads = L.EinsumDense("abc,cde->abde", (None, 2, 4), bias_axes="de", activation="tanh")(y)
    y = L.Add()([y, L.EinsumDense("abde,def->abf", (None, 6), bias_axes="f")(heads)])
    return L.EinsumDense("abc,cd->abd", (None, 3))(y)


def in_logarithms(x: Any) -> Any:
    """A recurrence without a recurrent matrix, as a sum of logarithms: h_t = (1 - z_t) h_{t-1} + z_t n_t."""
    z, n = L.Dense(6, activation="sigmoid")(x), L.Dense(6)(x)
    kept = keras.ops.cumsum(keras.ops.log(1 - z), axis=1)
    return L.Dense(2)(keras.ops.exp(kept) * keras.ops.cumsum(keras.ops.exp(-kept) * z * n, axis=1))


def sums(x: Any) -> Any:
    y = L.TimeDistributed(L.Dense(6, activation="relu"))(x)
    y = L.LSTM(4, return_sequences=True)(L.Dense(5, use_bias=False)(y))
    y = L.Add()([y, L.Dense(4)(y)])
    return L.Dense(2)(L.Dense(6, activation="tanh")(L.Permute((2, 1))(L.Permute((2, 1))(y))))


def attention(x: Any) -> Any:
    y = L.Dense(6)(x)
    y = L.Add()([y, L.MultiHeadAttention(2, 3)(y, y)])
    return L.Dense(2)(y)


def grouped_queries(x: Any) -> Any:
    """Three keys of two queries each, once with a gate; the second one reads another sequence than it asks from."""
    y = L.Dense(6)(x)
    y = L.Add()([y, L.GroupQueryAttention(4, 6, 3)(y, y)])
    z = L.GroupQueryAttention(3, 4, 2, use_gate=True)(y, L.Dense(6)(x), use_causal_mask=True)
    return L.Dense(2)(L.Add()([z, L.MultiHeadAttention(2, 3, use_gate=True)(z, y)]))


MODELS: dict[str, tuple[Callable[[Any], Any], tuple[int | None, ...]]] = {
    "separable": (separable, (8, 3)),
    "stacked-maps": (stacked_maps, (4, 4, 2)),
    "in-groups": (in_groups, (8, 3)),
    "excited": (excited, (8, 3)),
    "equations": (equations, (5, 4)),
    "in-logarithms": (in_logarithms, (5, 4)),
    "sums": (sums, (5, 3)),
    "attention": (attention, (5, 3)),
    "grouped-queries": (grouped_queries, (5, 3)),
}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with in_double():
        yield


def model_of(name: str) -> Any:
    build, shape = MODELS[name]
    x = keras.Input(shape)
    return randomise(keras.Model(x, build(x)))


@pytest.mark.parametrize("name", MODELS)
def test_pruned_equals_masked(name: str) -> None:
    model = model_of(name)
    inputs = inputs_for(model)
    before = weights_of(model)
    structure = reprune.inspect(model, [inputs], scope="all").structure
    pinned = [f"{layer.name}: {layer.pin}" for layer in structure.layers.values() if layer.pin]
    assert len(pinned) == 1
    assert "an output of the model" in pinned[0]
    plan = Plan.from_json(some_plan(structure, seed=len(name)).to_json())
    small, masked = reprune.apply(model, plan), reprune.mask(model, plan)
    assert error(outputs(masked, inputs), outputs(small, inputs)) < 1e-10
    assert error(outputs(model, inputs), outputs(masked, inputs)) > 1e-4
    assert parameters(small) == CostModel(structure)("parameters", plan.counts())
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))


def test_what_is_left_of_attention_is_the_sum_over_the_heads_that_stay() -> None:
    x = keras.Input((5, 4))
    attention = L.MultiHeadAttention(3, 4, value_dim=2, name="attention")
    model = randomise(keras.Model(x, attention(x, x, use_causal_mask=True)))
    batch = inputs_for(model)
    plan = reprune.plan(model, [batch], scope="all", include=["*:heads"], counts={"attention:heads": 2})
    kept = plan.kept["attention:heads"]
    small = reprune.apply(model, replace(plan, folds=(), refits=()))
    assert (len(kept), small.get_layer("attention").num_heads) == (2, 2)
    dense = (attention.query_dense, attention.key_dense, attention.value_dense)
    query, key, value = (np.einsum("btd,dhe->bhte", batch, array(p.kernel)) + array(p.bias)[:, None] for p in dense)
    scores = np.einsum("bhte,bhse->bhts", query, key) / 2 + np.where(np.tri(5), 0, -np.inf)
    chances = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    merged = np.einsum("bhts,bhse,heo->bhto", chances, value, array(attention.output_dense.kernel))
    expected = merged[:, kept].sum(1) + array(attention.output_dense.bias)
    assert error([expected], outputs(small, batch)) < 1e-10


class Mapped(L.Layer):
    """A map written by hand: what its weight reads cannot be seen from outside."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, self.kernel)


def test_a_width_that_shows_nowhere_is_seen_where_it_is_made() -> None:
    x = keras.Input((5, 3))
    made = L.Dense(6, activation="tanh", name="made")(x)
    model = randomise(keras.Model(x, L.Dense(2)(Mapped()(made))))
    batches = [inputs_for(model, 20, seed) for seed in range(2)]
    evidence = reprune.keras.calibrate(model, batches, scope="all")._evidence.layers["made:features"]
    rows = np.concatenate(outputs(keras.Model(x, made), np.concatenate(batches))[0])
    np.testing.assert_allclose(evidence.covariance, np.cov(rows.T, bias=True), atol=1e-12)


def test_attention_that_returns_as_many_features_as_a_query_that_stays_keeps_them() -> None:
    query = keras.Input((5, 6))
    model = keras.Model(query, L.Dense(2)(L.GroupQueryAttention(3, 4, 2, name="attention")(query, query)))
    layers = reprune.inspect(model, [np.zeros((2, 5, 6), "float32")], scope="all").structure.layers
    assert layers["attention:heads"].pin is None
    pin = layers["attention:features"].pin
    assert pin is not None
    assert pin.reason == "it returns as many features as its query has, which stay"


@pytest.mark.parametrize("name", ["separable", "stacked-maps", "excited", "equations"])
def test_units_that_others_repeat_leave_no_trace(name: str) -> None:
    """Of every layer the second half are copies of the first: what consumers read of them can be folded away."""
    model = model_of(name)
    batches = [inputs_for(model, 60, seed) for seed in range(2)]
    structure = reprune.inspect(model, batches, scope="all").structure
    weights = graph_of(model).weights()
    for slot in (slot for slot in structure.slots if slot.role != "reads"):
        value = array(weights[slot.tensor])
        for layer in {span.layer for span in slot.spans}.intersection(structure.prunable):
            places = slot.by_unit(layer, structure.layers[layer].units)
            assert places is not None
            half = len(places) // 2
            np.moveaxis(value, slot.axis, 0)[places[half:]] = np.moveaxis(value, slot.axis, 0)[places[:half]]
        weights[slot.tensor].assign(value)
    evidence = reprune.keras.calibrate(model, batches, scope="all")._evidence
    kept = {k: list(range(v.units // (1 if v.pin else 2))) for k, v in structure.layers.items()}
    folds = COMPENSATIONS["least-squares"](structure, kept, evidence.readings, {})
    assert {fold.tensor for fold in folds} == {consumer.tensor for consumer in structure.consumers}
    inputs = inputs_for(model, 4, 9)
    dense = outputs(model, inputs)
    assert error(dense, outputs(reprune.apply(model, Plan(structure, kept, folds=folds)), inputs)) < 1e-3
    assert error(dense, outputs(reprune.apply(model, Plan(structure, kept)), inputs)) > 0.1
