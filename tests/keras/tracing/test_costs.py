"""What layers with weights cost and make, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from tests.helpers.keras_labels import traced

L, K = keras.layers, keras.ops
Build = Callable[..., Any]
Count = Callable[[int, int], float]
UNITS, OWN = 4, 6
"""What is read, and what is made."""


def turned(h: Any) -> Any:
    return K.transpose(h, (0, 2, 1))


def over_words(h: Any) -> Any:
    words = L.ReversibleEmbedding(9, UNITS)
    words.build()
    return words(h, reverse=True)


# Two sequences of three steps. What is made of u units, with n of its own.
LAYERS: dict[str, tuple[Build, Count]] = {
    "dense": (lambda h: L.Dense(OWN)(h), lambda u, n: 6 * u * n),
    "dense on plain inputs": (lambda x: L.Dense(OWN)(x), lambda u, n: 6 * 4 * n),
    "dense on another axis": (lambda h: L.Dense(5)(turned(h)), lambda u, n: 2 * u * 3 * 5),
    "convolution": (lambda h: L.Conv1D(OWN, 2)(h), lambda u, n: 2 * 2 * 2 * u * n),
    "convolution with steps": (
        lambda h: L.Conv1D(OWN, 3, strides=2, padding="same")(h),
        lambda u, n: 2 * 2 * 3 * u * n,
    ),
    "convolution of maps": (
        lambda h: L.Conv2D(OWN, (2, 1), padding="same")(K.expand_dims(h, 2)),
        lambda u, n: 6 * 2 * u * n,
    ),
    "convolution in groups": (lambda h: L.Conv1D(8, 3, groups=4, padding="same")(h), lambda u, n: 6 * 3 * 2 * u),
    "convolution in wide groups": (lambda h: L.Conv1D(2, 2, groups=2)(h), lambda u, n: 4 * 2 * 2 * (u // 2)),
    "convolution in groups of plain inputs": (lambda x: L.Conv1D(8, 3, groups=4)(x), lambda u, n: 2 * 3 * 1 * 8),
    "depthwise, channels first": (
        lambda h: L.DepthwiseConv1D(2, data_format="channels_first")(turned(h)),
        lambda u, n: 2 * 2 * 2 * u,
    ),
    "transposed": (lambda h: L.Conv1DTranspose(OWN, 2, strides=2)(h), lambda u, n: 6 * 2 * u * n),
    "depthwise": (lambda h: L.DepthwiseConv1D(2, depth_multiplier=3)(h), lambda u, n: 4 * 2 * u * 3),
    "separable": (
        lambda h: L.SeparableConv1D(OWN, 2, depth_multiplier=3)(h),
        lambda u, n: 4 * 2 * u * 3 + 4 * 3 * u * n,
    ),
    "equation": (lambda h: L.EinsumDense("btx,xy->bty", (None, OWN))(h), lambda u, n: 6 * u * n),
    "equation with two axes": (
        lambda h: L.EinsumDense("btx,xyd->btyd", (None, OWN, 2), bias_axes="d")(h),
        lambda u, n: 6 * u * n * 2,
    ),
    "equation over two axes": (lambda h: L.EinsumDense("btx,txy->by", OWN)(h), lambda u, n: 2 * 3 * u * n),
    "equation of steps": (lambda h: L.EinsumDense("btx,ts->bsx", (5, UNITS))(h), lambda u, n: 2 * u * 3 * (n - 1)),
    "equation for each unit": (
        lambda h: L.EinsumDense("btx,xy->btxy", (None, UNITS, 3))(h),
        lambda u, n: 6 * u * (n - 3),
    ),
    "attention": (lambda h, x: L.Attention()([h, h, x]), lambda u, n: 2 * 3 * 3 * (u + 4)),
    "attention of one": (lambda h: L.Attention()([h[:, :2], h]), lambda u, n: 2 * 2 * 3 * 2 * u),
    "additive attention": (lambda h: L.AdditiveAttention()([h, h]), lambda u, n: 2 * 3 * 3 * 2 * u),
    "heads": (
        lambda h: L.MultiHeadAttention(OWN, 3, value_dim=2, output_shape=1)(h[:, :2], h),
        lambda u, n: 2 * (2 * u * 3 + 3 * u * 3 + 3 * u * 2) * n + 2 * 2 * 3 * n * (3 + 2) + 2 * 2 * n * 2 * 1,
    ),
    "heads of groups": (
        lambda x: L.GroupQueryAttention(3, 12, OWN)(x, x),
        lambda u, n: 6 * 4 * 3 * (2 * n + n + n) + 2 * 3 * 3 * 2 * n * (3 + 3) + 6 * 2 * n * 3 * 4,
    ),
    "words": (over_words, lambda u, n: 6 * u * 9),
    "lstm": (lambda h: L.LSTM(OWN)(h), lambda u, n: 6 * 4 * n * (u + n)),
    "gru on plain inputs": (lambda x: L.GRU(OWN)(x), lambda u, n: 6 * 3 * n * (4 + n)),
    "rnn of one unit": (lambda h: L.SimpleRNN(1)(h), lambda u, n: 6 * (u + 1)),
    "stack": (
        lambda h: L.RNN([L.SimpleRNNCell(1), L.SimpleRNNCell(OWN)])(h),
        lambda u, n: 6 * (u * 1 + 1 * 1 + 1 * n + n * n),
    ),
    "two directions": (
        lambda h: L.Bidirectional(L.SimpleRNN(OWN), merge_mode="sum")(h),
        lambda u, n: 2 * 6 * n * (u + n),
    ),
    "cell": (lambda h: L.GRUCell(OWN)(h[:, 0], [K.zeros((2, OWN))])[0], lambda u, n: 2 * 3 * n * (u + n)),
    "maps": (
        lambda h: L.ConvLSTM1D(OWN, 3, padding="same")(K.expand_dims(h, 1)),
        lambda u, n: 6 * 3 * 4 * n * (u + n),
    ),
    "distributed": (lambda h: L.TimeDistributed(L.Dense(OWN))(h), lambda u, n: 6 * u * n),
}


@pytest.mark.parametrize("name", LAYERS)
def test_products_are_counted(name: str) -> None:
    build, count = LAYERS[name]
    tracer, _ = traced(build)
    roots = tracer.couplings.roots
    read = next((tensor.shadow.labels for tensor in tracer.inputs if tensor.shadow), np.zeros(1, int))
    own = next(iter(tracer.widths.values())).labels if tracer.widths else np.zeros(1, int)
    if tracer.cells:
        own = list(tracer.cells.values())[-1].labels

    def found(gone: Any) -> float:
        left = [
            [
                axis if isinstance(axis, int) else sum(root == 0 or root not in gone for root in roots(axis))
                for axis in t.axes
            ]
            for t in tracer.records.products
        ]
        return sum(term.rows * np.prod(axes) for term, axes in zip(tracer.records.products, left, strict=True))

    assert found([]) == count(UNITS, OWN)
    assert found(roots(read[:1])) == count(UNITS - 1, OWN)
    assert found(roots(own[:1])) == count(UNITS, OWN - 1)


# Whether what is made is zero once the weights are, by hand.
SILENT: dict[str, tuple[Build, bool]] = {
    "dense": (lambda x: L.Dense(OWN, activation="tanh")(x), True),
    "dense, sigmoid": (lambda x: L.Dense(OWN, activation="sigmoid")(x), False),
    "dense on another axis": (lambda h: L.Dense(5)(turned(h)), False),
    "dense on another axis without a bias": (lambda h: L.Dense(5, use_bias=False)(turned(h)), True),
    "dense on another axis, of what is not zero": (lambda h: L.Dense(5, use_bias=False)(turned(K.sigmoid(h))), False),
    "dense on another axis, sigmoid": (lambda h: L.Dense(5, "sigmoid", use_bias=False)(turned(h)), False),
    "convolution": (lambda x: L.Conv1D(OWN, 2)(x), True),
    "convolution, sigmoid": (lambda x: L.Conv1D(OWN, 2, activation="sigmoid")(x), False),
    "groups": (lambda h: L.Conv1D(8, 3, groups=4)(h), True),
    "groups, sigmoid": (lambda h: L.Conv1D(8, 3, groups=4, activation="sigmoid")(h), False),
    "depthwise": (lambda h: L.DepthwiseConv1D(2)(h), True),
    "depthwise, sigmoid": (lambda h: L.DepthwiseConv1D(2, activation="sigmoid")(h), False),
    "separable": (lambda h: L.SeparableConv1D(OWN, 2)(h), True),
    "separable, exponential": (lambda h: L.SeparableConv1D(OWN, 2, activation="exponential")(h), False),
    "equation": (lambda h: L.EinsumDense("btx,xy->bty", (None, OWN))(h), True),
    "equation, sigmoid": (lambda h: L.EinsumDense("btx,xy->bty", (None, OWN), activation="sigmoid")(h), False),
    "equation of steps": (lambda h: L.EinsumDense("btx,ts->bsx", (5, UNITS))(h), True),
    "equation of steps with a bias": (lambda h: L.EinsumDense("btx,ts->bsx", (5, UNITS), bias_axes="s")(h), False),
    "equation of steps, of what is not zero": (
        lambda h: L.EinsumDense("btx,ts->bsx", (5, UNITS))(K.sigmoid(h)),
        False,
    ),
    "equation of steps, sigmoid": (
        lambda h: L.EinsumDense("btx,ts->bsx", (5, UNITS), activation="sigmoid")(h),
        False,
    ),
    "batch norm": (lambda h: L.BatchNormalization()(K.sigmoid(h)), True),
    "batch norm without a gain": (lambda h: L.BatchNormalization(scale=False)(h), False),
    "layer norm": (lambda h: L.LayerNormalization()(K.sigmoid(h)), True),
    "layer norm without a gain": (lambda h: L.LayerNormalization(scale=False)(h), False),
    "layer norm over time": (lambda h: L.LayerNormalization()(turned(h)), False),
    "layer norm over time without a shift": (lambda h: L.LayerNormalization(center=False)(turned(h)), True),
    "layer norm over time of what is not zero": (
        lambda h: L.LayerNormalization(center=False)(turned(K.sigmoid(h))),
        False,
    ),
    "root mean square": (lambda h: L.RMSNormalization()(K.sigmoid(h)), True),
    "group norm": (lambda h: L.GroupNormalization(-1)(K.sigmoid(h)), True),
    "group norm without a gain": (lambda h: L.GroupNormalization(-1, scale=False)(h), True),
    "group norm without a gain, of what is not zero": (
        lambda h: L.GroupNormalization(1, scale=False)(K.sigmoid(h)),
        False,
    ),
    "unit norm over time": (lambda h: L.UnitNormalization(axis=1)(K.sigmoid(h)), False),
    "slopes": (lambda h: L.PReLU(shared_axes=[1])(h), True),
    "slopes of what is not zero": (lambda h: L.PReLU()(K.sigmoid(h)), False),
    "attention": (lambda h, x: L.Attention()([x, h, x]), True),
    "attention to what is not zero": (lambda h, x: L.Attention()([x, K.sigmoid(h), x]), False),
    "recurrent": (lambda x: L.LSTM(OWN)(x), True),
    "recurrent, sigmoid": (lambda x: L.GRU(OWN, activation="sigmoid")(x), False),
    "two directions": (lambda x: L.Bidirectional(L.LSTM(OWN))(x), True),
    "two directions, sigmoid": (
        lambda x: L.Bidirectional(L.GRU(3), backward_layer=L.GRU(3, activation="sigmoid", go_backwards=True))(x),
        False,
    ),
    "sum of two directions, sigmoid": (
        lambda x: L.Bidirectional(L.GRU(OWN, activation="sigmoid"), merge_mode="sum")(x),
        False,
    ),
    "distributed": (lambda h: L.TimeDistributed(L.ReLU())(h), True),
    "distributed, not zero": (lambda h: L.TimeDistributed(L.ReLU())(K.sigmoid(h)), False),
    "masked": (lambda h: L.Masking()(turned(h)), True),
    "masked, not zero": (lambda h: L.Masking()(turned(K.sigmoid(h))), False),
}


@pytest.mark.parametrize("name", SILENT)
def test_what_is_zero_once_its_weights_are(name: str) -> None:
    build, silent = SILENT[name]
    found = traced(build)[0].outputs[0].shadow
    assert found is not None
    assert found.silent is silent


# What reads units: the weight, its axis, and the bias that can take up what is the same for all.
CONSUMERS: dict[str, tuple[Build, set[tuple[str, int, str | None]]]] = {
    "dense": (lambda h: L.Dense(3)(h), {("kernel", 0, "bias")}),
    "dense without a bias": (lambda h: L.Dense(3, use_bias=False)(h), {("kernel", 0, None)}),
    "dense on another axis": (lambda h: L.Dense(3)(turned(h)), set()),
    "convolution": (lambda h: L.Conv1D(3, 2)(h), {("kernel", 1, "bias")}),
    "transposed": (lambda h: L.Conv1DTranspose(3, 2)(h), {("kernel", 2, "bias")}),
    "transposed with steps": (lambda h: L.Conv1DTranspose(3, 2, strides=2)(h), {("kernel", 2, None)}),
    "convolution with steps": (lambda h: L.Conv1D(3, 2, strides=2)(h), {("kernel", 1, "bias")}),
    "separable": (lambda h: L.SeparableConv1D(3, 2)(h), {("pointwise_kernel", 1, "bias")}),
    "equation": (lambda h: L.EinsumDense("btx,xy->bty", (None, 3), bias_axes="y")(h), {("kernel", 0, "bias")}),
    "equation, turned": (lambda h: L.EinsumDense("btx,yx->bty", (None, 3), bias_axes="y")(h), {("kernel", 1, None)}),
    "equation with two axes": (
        lambda h: L.EinsumDense("btx,xyd->btyd", (None, 3, 2), bias_axes="yd")(h),
        {("kernel", 0, "bias")},
    ),
    "equation with two axes and a bias along one": (
        lambda h: L.EinsumDense("btx,xyd->btyd", (None, 3, 2), bias_axes="d")(h),
        {("kernel", 0, None)},
    ),
    "equation over two axes": (
        lambda h: L.EinsumDense("btx,txy->by", 3, bias_axes="y")(h),
        {("kernel", 1, "bias")},
    ),
    "equation of a sum": (lambda h: L.EinsumDense("btx,x->bt", (3,))(h), {("kernel", 0, None)}),
    "recurrent": (lambda h: L.LSTM(3)(h), {("kernel", 0, "bias"), ("recurrent_kernel", 0, "bias")}),
    "recurrent without a bias": (
        lambda h: L.GRU(3, use_bias=False)(h),
        {("kernel", 0, None), ("recurrent_kernel", 0, None)},
    ),
    "reset before the product": (lambda h: L.GRU(3, reset_after=False)(h), {("kernel", 0, "bias")}),
    "recurrent on plain inputs": (lambda x: L.LSTM(3)(x), {("recurrent_kernel", 0, "bias")}),
}


@pytest.mark.parametrize("name", CONSUMERS)
def test_what_reads_units(name: str) -> None:
    build, expected = CONSUMERS[name]
    found = traced(build)[0].records.consumers
    ends = {key: None if bias is None else bias.rpartition("/")[2] for key, bias in found.items()}
    assert {(tensor.rpartition("/")[2], axis, bias) for (tensor, axis), bias in ends.items()} == expected
