"""Weights of `CuDNNLSTM` and `CuDNNGRU`, layers of Keras 2 for GPUs alone, as `LSTM` and `GRU` keep them.

Both have the gates in the same order. The layers for cuDNN hold each gate's matrix the way cuDNN reads it, transposed,
but under the shape of the other layers, and two biases, one for the input and one for the state, end to end.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

Array = Any
LAYERS = {"CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU"}
"""By the layer's name, the one that takes its place."""
OPTIONS: dict[str, dict[str, Any]] = {
    "CuDNNLSTM": {"activation": "tanh", "recurrent_activation": "sigmoid"},
    "CuDNNGRU": {"activation": "tanh", "recurrent_activation": "sigmoid", "reset_after": True},
}
"""What that one must be told: cuDNN knows no other functions."""


def translate_weights(file: h5py.File) -> None:
    """Rewrite the weights of all layers for cuDNN in a file of Keras 2, in place; they are told by their shapes."""
    groups: list[h5py.Group] = []
    file.visititems(lambda _, item: groups.append(item) if isinstance(item, h5py.Group) else None)
    for group in groups:
        names = [f"{name}:0" for name in ("kernel", "recurrent_kernel", "bias")]
        if all(name in group for name in names):
            kernel, recurrent, bias = (group[name][()] for name in names)
            # Other layers have one bias per gate and unit, or two rows of them.
            if bias.shape == (2 * recurrent.shape[1],):
                for name, value in zip(names, plain(kernel, recurrent, bias), strict=True):
                    del group[name]
                    group[name] = value


def plain(kernel: Array, recurrent: Array, bias: Array) -> tuple[Array, Array, Array]:
    """The weights of one layer, as `LSTM`, or `GRU` with `reset_after`, keeps them.

    Args:
        kernel: Input weights (features × gates · units).
        recurrent: Recurrent weights (units × gates · units).
        bias: Both biases (2 · gates · units).
    """
    gates = recurrent.shape[1] // recurrent.shape[0]
    biases = bias.reshape(2, -1)
    return _turned(kernel, gates), _turned(recurrent, gates), biases.sum(0) if gates == 4 else biases


def _turned(matrix: Array, gates: int) -> Array:
    parts = (part.reshape(part.shape[::-1]).T for part in np.split(matrix, gates, axis=1))
    return np.concatenate(list(parts), axis=1)
