"""Functions of TensorFlow and of Keras 2 on symbolic tensors compute what they compute on tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from reprune.keras.tracing.graph import array
from reprune.keras.tracing.symbolic import followed

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the backend is another one")
math, nn, old = tf.math, tf.nn, tf.keras.backend
ALIKE = (
    tf.square, tf.exp, tf.abs, tf.negative, tf.tanh, tf.sigmoid, nn.relu, nn.relu6, nn.elu, nn.selu, nn.silu,
    math.softplus, nn.softsign, tf.sign, tf.round, tf.zeros_like, tf.ones_like, tf.stop_gradient, tf.identity,
)  # fmt: skip
OF_TWO = (
    tf.add, tf.subtract, tf.multiply, tf.divide, tf.maximum, tf.minimum, tf.equal, tf.not_equal, tf.greater,
    tf.greater_equal, tf.less, tf.less_equal, math.squared_difference,
)  # fmt: skip
REDUCTIONS = (
    tf.reduce_mean, tf.reduce_sum, tf.reduce_max, tf.reduce_min, tf.reduce_prod, math.reduce_std, math.reduce_variance,
    tf.reduce_logsumexp,
)  # fmt: skip

# Of x and y, matrices for each of two sequences.
TENSORFLOW: dict[str, Callable[[Any, Any], Any]] = {
    "functions of one": lambda x, y: tf.stack([function(x) for function in ALIKE], axis=1),
    "functions of two": lambda x, y: tf.stack([tf.cast(function(x, y), x.dtype) for function in OF_TWO]),
    "names of arguments": lambda x, y: tf.subtract(y=tf.pow(tf.abs(x), y=2.0), x=tf.math.rsqrt(tf.sqrt(tf.abs(y)))),
    "reductions": lambda x, y: tf.stack([function(x, 1) for function in REDUCTIONS]),
    "reductions over several": lambda x, y: tf.stack([function(x, axis=[0, 2]) for function in REDUCTIONS], axis=-1),
    "reductions over all": lambda x, y: tf.stack([function(x) for function in REDUCTIONS]),
    "axes are kept": lambda x, y: tf.concat([function(x, (-1,), keepdims=True) for function in REDUCTIONS], axis=2),
    "any and all": lambda x, y: tf.stack([tf.reduce_any(x > 0.5, axis=2), tf.reduce_all(x > -0.5, axis=2)]),
    "logic": lambda x, y: tf.where(
        tf.logical_not(tf.logical_or(x > 1, tf.logical_and(x < y, y > 0))), tf.math.log(tf.abs(x)), y
    ),
    "softmax": lambda x, y: nn.softmax(x, 1) + nn.log_softmax(y, axis=1) + nn.leaky_relu(x),
    "softmax of the last axis": lambda x, y: nn.softmax(x, axis=None) + nn.log_softmax(y),
    "another type": lambda x, y: tf.cast(tf.cast(3 * x, tf.int32), y.dtype) + tf.cast(x > 0, dtype=tf.float32),
    "gelu": lambda x, y: nn.gelu(x) + 10 * nn.gelu(y, True),
    "bounds": lambda x, y: tf.clip_by_value(x, -0.5, 0.25, name="clipped"),
    "letters": lambda x, y: tf.einsum("btd,bsd->bts", x, y),
    "turned": lambda x, y: tf.transpose(x) - tf.transpose(tf.transpose(y, [1, 0, 2]), perm=[2, 0, 1]),
    "axes of one": lambda x, y: tf.squeeze(tf.expand_dims(x, 1)) + tf.squeeze(tf.expand_dims(y, axis=-1), axis=[3]),
    "side by side": lambda x, y: tf.add_n([tf.concat([x, y, x], 2)[..., 1:5], y, x]),
    "sums": lambda x, y: tf.concat([tf.cumsum(x), tf.cumsum(y, axis=1)], axis=-1),
    "stack and back": lambda x, y: tf.stack(tf.unstack(x, axis=2)) - tf.unstack(tf.stack([x, y]), 2)[1][0, 0, 0],
    "reversed": lambda x, y: tf.reverse(x, [1, 2]) + tf.reverse(y, axis=[0]),
    "places": lambda x, y: (
        tf.cast(tf.argmax(x, axis=2), "float32") * tf.cast(tf.argmax(y, 1, tf.int32), "float32")[:, :1]
    ),
    "places in the batch": lambda x, y: (
        tf.cast(tf.argmax(x), "float32") + tf.cast(tf.argmax(y, axis=-1), "float32")[0, :, None]
    ),
    "lengths": lambda x, y: (
        tf.norm(x, axis=1) * tf.norm(y, 1, axis=-1, keepdims=True)[:, 0] + tf.norm(y, axis=[1, 2])[0] - tf.norm(x[0, 0])
    ),
    "of length one": lambda x, y: (
        tf.linalg.l2_normalize(x, axis=2) * tf.linalg.l2_normalize(x) + tf.linalg.l2_normalize(y, [1], epsilon=3.0)
    ),
    "padded": lambda x, y: tf.pad(tf.pad(x, [[0, 0], [1, 0], [0, 2]]), ((0, 0), (0, 1), (0, 0)), constant_values=2.0),
    "padded by reflection": lambda x, y: tf.pad(x, [[0, 0], [1, 2], [0, 0]], mode="REFLECT"),
    "padded in small letters": lambda x, y: tf.pad(x, [[0, 0], [1, 2], [0, 0]], "constant", 3.0),
    "split evenly": lambda x, y: tf.split(x, 2, 2)[1] * tf.split(y, 2)[0][..., :2],
    "split by sizes": lambda x, y: tf.split(x, [1, 1, 2], axis=2)[2] - tf.split(y, (3, 1), -1)[0][..., 1:],
    "split by what is left": lambda x, y: tf.split(x, [1, -1, 1], axis=2)[1] - tf.split(y, [-1, 2], -1)[1],
    "products": lambda x, y: tf.matmul(x, y, transpose_b=True) @ tf.matmul(x, y, transpose_a=True)[:, :3],
    "products of axes": lambda x, y: (
        tf.tensordot(x, y, axes=[[2], [2]]) + tf.linalg.matvec(x, y[:, 0])[..., None, None]
    ),
    "taken": lambda x, y: tf.gather(x, [2, 0, 2], axis=1) - tf.gather(y, [1]),
    "taken from each by default": lambda x, y: tf.gather(x, tf.argmax(y[..., 0], 1), None, None, 1),
    "taken from each": lambda x, y: tf.gather(x, tf.argmax(y[..., 0], axis=1), axis=1, batch_dims=1),
    "shaped": lambda x, y: tf.reshape(x, [tf.shape(x)[0], 12]) + tf.reshape(y, (-1, 12)),
    "as many zeros": lambda x, y: tf.zeros((tf.shape(x)[0], 3)) + x[..., 0] + tf.zeros([tf.shape(x)[0], 1], "float32"),
    "again": lambda x, y: tf.tile(x, [1, 2, 1]) + tf.repeat(y, 2, axis=1) + tf.broadcast_to(x[:, :1], [2, 6, 4]),
}
KERAS_2: dict[str, Callable[[Any, Any], Any]] = {
    "product": lambda x, y: old.dot(x, old.permute_dimensions(y[0], (1, 0))),
    "product for each": lambda x, y: old.batch_dot(x, old.permute_dimensions(y, (0, 2, 1))),
    "product for each, of vectors": lambda x, y: old.batch_dot(x, y[:, 0]),
    "product for each over an axis": lambda x, y: old.batch_dot(x, y, axes=1) + old.batch_dot(x, y, axes=(1, 1)),
    "statistics": lambda x, y: old.mean(x, axis=-1) + old.std(x, axis=2) * old.var(y, axis=2) + old.mean(x),
    "statistics with axes": lambda x, y: old.mean(x, 1, True) + old.std(x, 1, keepdims=True) + old.var(y, 1, True),
    "softmax": lambda x, y: old.softmax(x) + old.softmax(y, axis=1),
    "again": lambda x, y: old.repeat_elements(x, 2, axis=1),
    "beside": lambda x, y: old.concatenate([old.concatenate([x, y]), old.concatenate([y, x])], axis=1),
    "what they are": lambda x, y: old.cast(x > 0, old.dtype(x)) * old.ndim(y),
}


# Keras compares sizes that it does not know.
@pytest.mark.filterwarnings("ignore:NotImplemented should not:DeprecationWarning")
@pytest.mark.parametrize("case", [*TENSORFLOW.values(), *KERAS_2.values()], ids=[*TENSORFLOW, *KERAS_2])
def test_a_function_computes_the_same(case: Callable[[Any, Any], Any]) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype("float32")
    inputs = [keras.Input((3, 4)), keras.Input((3, 4))]
    with followed(inputs, keras.layers.ReLU()):
        model = keras.Model(inputs, case(*inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = case(tf.constant(x), tf.constant(y))
    np.testing.assert_allclose(array(model([x, y])), expected, rtol=1e-5, atol=1e-6)


def test_what_has_no_translation_is_named_and_refused() -> None:
    inputs = keras.Input((3, 4))
    with followed(inputs, keras.layers.ReLU()) as unknown:
        with pytest.raises(ValueError, match="KerasTensor"):
            tf.linalg.diag(inputs)
        assert unknown
        with pytest.raises(NotImplementedError, match="batch_dims"):
            tf.gather(inputs, tf.argmax(inputs, axis=1), axis=2, batch_dims=1)
        # Beside code that is followed, tensors are TensorFlow's.
        assert tf.is_tensor(tf.square(tf.ones(2)))
    with pytest.raises(ValueError, match="KerasTensor"):
        tf.square(inputs)
