"""Random Keras models out of the usual pieces, random plans: pruned must equal masked, or the layer must be pinned.

`REPRUNE_FUZZ=2000 pytest tests/keras/tracing/test_random_models.py` runs that many examples.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import reprune.keras
from reprune.core.budget.cost import CostModel
from reprune.core.plan import Plan
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import error, in_double, outputs, parameters, some_plan, weights_of

L, K, T, F = zoo.L, zoo.K, 4, 4
EXAMPLES = int(os.environ.get("REPRUNE_FUZZ", "8"))
LIMIT = 1e-10
LAYERS = {"lstm": L.LSTM, "gru": L.GRU, "rnn": L.SimpleRNN}
KINDS = ("lstm", "gru", "gru-before", "rnn", "cell", "stack", "both", "both-mixed", "both-stack")


def recurrent(kind: str, units: int, options: dict[str, Any]) -> Any:
    """A recurrent layer that returns sequences."""
    cell = {"activation": options["activation"], "recurrent_dropout": options["dropout"]}
    layer = {"return_sequences": True, "unroll": options["unroll"]}
    turned = {**layer, "go_backwards": options["go_backwards"]}
    mode = options["merge_mode"]
    if kind == "gru-before":
        return L.GRU(units, reset_after=False, use_bias=options["use_bias"], **cell, **turned)
    if kind in LAYERS:
        return LAYERS[kind](units, use_bias=options["use_bias"], **cell, **turned)
    if kind == "cell":
        return L.RNN(L.LSTMCell(units, use_bias=options["use_bias"], **cell), **turned)
    stack = [L.GRUCell(3), L.LSTMCell(units, **cell)]
    if kind == "stack":
        return L.RNN(stack, **turned)
    if kind == "both":
        return L.Bidirectional(L.LSTM(units, **cell, **layer), merge_mode=mode)
    if kind == "both-mixed":
        back = L.SimpleRNN(units, go_backwards=True, **layer)
        return L.Bidirectional(L.GRU(units, **cell, **layer), backward_layer=back, merge_mode=mode)
    return L.Bidirectional(L.RNN(stack, **layer), merge_mode=mode)


def other(h: Any, x: Any) -> Any:
    return L.GRU(h.shape[-1], return_sequences=True)(x)


def residual(h: Any, x: Any) -> Any:
    return L.Add()([h, L.Dense(h.shape[-1])(x)])


def handed_over(h: Any, x: Any) -> Any:
    sequence, *states = L.LSTM(5, return_sequences=True, return_state=True)(h)
    return L.LSTM(5, return_sequences=True)(sequence, initial_state=states)


def twice(h: Any, x: Any) -> Any:
    tower = L.LSTM(5, return_sequences=True)
    return L.Concatenate()([tower(L.Dense(3)(h)), tower(L.Dense(3)(x))])


def inside(h: Any, x: Any) -> Any:
    read = keras.Input((None, h.shape[-1]))
    made = L.Concatenate()([L.GRU(4, return_sequences=True)(read), L.Dense(2)(read)])
    return keras.Model(read, made)(h)


def dot_attention(h: Any, x: Any) -> Any:
    scores = K.softmax(K.einsum("btd,bsd->bts", h, h), axis=-1)
    return K.matmul(scores, h)


def pyramid(h: Any, x: Any) -> Any:
    return L.UpSampling1D(2)(L.Reshape((T // 2, 2 * h.shape[-1]))(h))


def pieces_of_time(h: Any, x: Any) -> Any:
    first, second = K.split(h, 2, axis=1)
    return K.stack([second[:, 0], first[:, 1], second[:, 1], K.mean(first, axis=1)], axis=1)


def folded_time(h: Any, x: Any) -> Any:
    return L.TimeDistributed(L.LSTM(4))(K.stack([h, 2.0 * h], axis=2))


WIRINGS: dict[str, Callable[[Any, Any], Any]] = {
    "chain": lambda h, x: h,
    "residual": residual,
    "skip": lambda h, x: L.Concatenate()([h, x]),
    "gate": lambda h, x: h * L.Dense(h.shape[-1], activation="sigmoid")(h),
    "batch-norm": lambda h, x: L.BatchNormalization()(h),
    "layer-norm": lambda h, x: L.LayerNormalization()(h),
    "convolution": lambda h, x: L.Conv1D(5, 3, padding="same", activation="relu")(h),
    "separable": lambda h, x: L.SeparableConv1D(5, 2, padding="same", depth_multiplier=2)(h),
    "attention": lambda h, x: L.Concatenate()([h, L.Attention(use_scale=True)([h, h])]),
    "additive-attention": lambda h, x: L.AdditiveAttention()([h, other(h, x)]),
    "multi-head": lambda h, x: h + L.MultiHeadAttention(2, 3)(h, h),
    "dot-attention": dot_attention,
    "multiply": lambda h, x: h * other(h, x),
    "maximum": lambda h, x: L.Maximum()([h, other(h, x)]),
    "activation": lambda h, x: K.clip(K.where(h > 0, h, K.gelu(h) - 0.1), -0.8, 0.8),
    "slopes": lambda h, x: L.PReLU(shared_axes=[1])(h),
    "pyramid": pyramid,
    "handed-over": handed_over,
    "twice": twice,
    "inside": inside,
    "distributed": lambda h, x: L.TimeDistributed(L.Dense(4, activation="relu"))(h),
    "folded-time": folded_time,
    "dropout": lambda h, x: L.SpatialDropout1D(0.3)(L.Dropout(0.2)(h)),
    "pooling": lambda h, x: L.AveragePooling1D(2, strides=1, padding="same")(h),
    "padding": lambda h, x: L.Cropping1D((1, 1))(L.ZeroPadding1D((0, 2))(h)),
    "permute": lambda h, x: L.Permute((2, 1))(L.Dense(T)(L.Permute((2, 1))(h))),
    "repeat": lambda h, x: L.Concatenate()([h, L.RepeatVector(T)(h[:, -1])]),
    "pieces": pieces_of_time,
    "lambda": lambda h, x: L.Lambda(lambda v: 2.0 * v, output_shape=h.shape[1:])(h),
}
HEADS: dict[str, Callable[[Any], Any]] = {
    "steps": lambda h: L.Dense(3)(h),
    "last": lambda h: L.Dense(3)(h[:, -1, :]),
    "summary": lambda h: L.Dense(3)(L.LSTM(5)(h)),
    "maximum": lambda h: L.Dense(3)(L.GlobalMaxPooling1D()(h)),
    "mean": lambda h: L.Dense(3)(L.GlobalAveragePooling1D()(h)),
    "flat": lambda h: L.Dense(3)(L.Flatten()(h)),
    "two": lambda h: {"steps": L.Dense(3)(h), "clip": L.Dense(2)(K.max(h, axis=1))},
}
# Right to pin; everything else must come out exact.
RIGHT = (
    "other positions",  # Two directions side by side beside one layer of their width, or beside each other.
    "cannot be silenced",  # A sigmoid's units in attention without weights.
)
BLOCKS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "wiring": st.sampled_from(sorted(WIRINGS)),
        "units": st.integers(2, 7),
        "activation": st.sampled_from(["tanh", "tanh", "relu", "softsign", "sigmoid"]),
        "merge_mode": st.sampled_from(["concat", "sum", "mul", "ave"]),
        "use_bias": st.booleans(),
        "unroll": st.booleans(),
        "go_backwards": st.booleans(),
        "dropout": st.sampled_from([0.0, 0.2]),
    }
)


def built(blocks: list[dict[str, Any]], head: str, front: str, seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    if front == "tokens":
        entry = keras.Input((T,), dtype="int32")
        x = L.Embedding(7, F, mask_zero=True)(entry)
    else:
        entry = keras.Input((T, F))
        x = L.Masking()(entry) if front == "masking" else entry
    for block in blocks:
        x = WIRINGS[block["wiring"]](recurrent(block["kind"], block["units"], block)(x), x)
    return zoo.randomise(keras.Model(entry, HEADS[head](x)), seed)


def batch(front: str, count: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 7, size=(count, T)).astype("int32") if front == "tokens" else rng.normal(size=(count, T, F))
    if front != "plain":
        x[0, -1:] = 0
    return x


def check(blocks: list[dict[str, Any]], head: str, front: str, seed: int) -> None:
    with in_double():
        model, x = built(blocks, head, front, seed), batch(front, 3, seed)
        weights, whole = weights_of(model), outputs(model, x)
        structure = reprune.keras.trace(model, x)
        for name, layer in structure.layers.items():
            assert layer.pin is None or any(reason in layer.pin.reason for reason in RIGHT), f"{name}: {layer.pin}"
        plan = Plan.from_json(some_plan(structure, seed).to_json())
        small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
        inexact = any(layer.approximate and len(plan.kept[n]) < layer.units for n, layer in structure.layers.items())
        for given_x in (x, batch(front, 5, seed + 1)):
            assert inexact or error(outputs(masked, given_x), outputs(small, given_x)) < LIMIT
        assert parameters(small) == CostModel(structure)("parameters", plan.counts())
        assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
        same = reprune.keras.apply(model, Plan(structure, {n: list(range(u)) for n, u in structure.counts().items()}))
        assert error(whole, outputs(same, x)) < LIMIT
        assert all(np.array_equal(a, b) for a, b in zip(weights, weights_of(model), strict=True))


# Where a mask ends is Keras's to warn about.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.timeout(36000)
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize="REPRUNE_FUZZ" not in os.environ, print_blob=True,
    suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate),
)  # fmt: skip
@given(
    st.lists(BLOCKS, min_size=1, max_size=3),
    st.sampled_from(sorted(HEADS)),
    st.sampled_from(["plain", "masking", "tokens"]),
    st.integers(0, 10**6),
)
def test_random_models(blocks: list[dict[str, Any]], head: str, front: str, seed: int) -> None:
    check(blocks, head, front, seed)
