"""Multiply-accumulates of layers, counted by hand, with all units and with one less."""

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
    "transposed": (lambda h: L.Conv1DTranspose(OWN, 2, strides=2)(h), lambda u, n: 6 * 2 * u * n),
    "depthwise": (lambda h: L.DepthwiseConv1D(2, depth_multiplier=3)(h), lambda u, n: 4 * 2 * u * 3),
    "separable": (
        lambda h: L.SeparableConv1D(OWN, 2, depth_multiplier=3)(h),
        lambda u, n: 4 * 2 * u * 3 + 4 * 3 * u * n,
    ),
    "equation": (lambda h: L.EinsumDense("btx,xy->bty", (None, OWN))(h), lambda u, n: 6 * u * n),
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
