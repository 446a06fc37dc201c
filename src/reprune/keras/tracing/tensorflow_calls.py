"""TensorFlow's own functions in the `call` of a Keras model, on symbolic inputs: done with `keras.ops`.

Keras 3 refuses them there, though models written for TensorFlow are full of them. TensorFlow asks a dispatcher about
every call that its function refused.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from reprune.keras.tracing.open_sizes import OpenSize

K = keras.ops
Translation = Callable[..., Any]


@contextmanager
def translated() -> Iterator[list[str]]:
    """While this is entered, TensorFlow's functions take symbolic tensors.

    Yields:
        The names of the functions that were called so and are not known here.
    """
    unknown: list[str] = []
    tf = sys.modules.get("tensorflow")
    if tf is None or keras.backend.backend() != "tensorflow":
        yield unknown
        return
    if not _REGISTERED:
        _REGISTERED.append(_dispatcher(_table(tf)))
    _ACTIVE.append(unknown)
    try:
        yield unknown
    finally:
        _ACTIVE.pop()


_ACTIVE: list[list[str]] = []
_REGISTERED: list[Any] = []


def _dispatcher(table: dict[tuple[str, str], Translation]) -> Any:
    from tensorflow.python.util import dispatch

    class Dispatcher(dispatch.GlobalOpDispatcher):  # type: ignore[misc]
        """Answers calls with symbolic tensors, and only while a model is being followed."""

        def handle(self, op: Any, args: Any, kwargs: Any) -> Any:
            """The result of a call that TensorFlow refused."""
            if not _ACTIVE or not any(_is_open(leaf) for leaf in keras.tree.flatten((args, kwargs))):
                return self.NOT_SUPPORTED
            if _key(op) not in table:
                _ACTIVE[-1].append(op.__name__)
                return self.NOT_SUPPORTED
            kwargs.pop("name", None)
            return table[_key(op)](*args, **kwargs)

    found = Dispatcher()
    found.register()
    return found


def _is_open(leaf: Any) -> bool:
    # A shape with a batch size that is not known is as symbolic as a tensor.
    return isinstance(leaf, (keras.KerasTensor, OpenSize)) or leaf is None


def _key(function: Any) -> tuple[str, str]:
    # The public function wraps the one that asks.
    return function.__module__, function.__name__


def _table(tf: Any) -> dict[tuple[str, str], Translation]:
    """What to call instead of each function of TensorFlow."""
    math, nn = tf.math, tf.nn
    reductions = {
        tf.reduce_mean: K.mean, tf.reduce_sum: K.sum, tf.reduce_max: K.max, tf.reduce_min: K.min,
        tf.reduce_prod: K.prod, tf.reduce_any: K.any, tf.reduce_all: K.all, math.reduce_std: K.std,
        math.reduce_variance: K.var, tf.reduce_logsumexp: K.logsumexp,
    }  # fmt: skip
    alike = {
        tf.add: K.add, tf.subtract: K.subtract, tf.multiply: K.multiply, tf.divide: K.divide, tf.maximum: K.maximum,
        tf.minimum: K.minimum, tf.pow: K.power, tf.square: K.square, tf.sqrt: K.sqrt, math.rsqrt: K.rsqrt,
        tf.exp: K.exp, math.log: K.log, tf.abs: K.absolute, tf.negative: K.negative, tf.tanh: K.tanh,
        tf.sigmoid: K.sigmoid, nn.relu: K.relu, nn.relu6: K.relu6, nn.elu: K.elu, nn.selu: K.selu, nn.silu: K.silu,
        math.softplus: K.softplus, nn.softsign: K.softsign, nn.leaky_relu: K.leaky_relu,
        tf.clip_by_value: K.clip, tf.equal: K.equal,
        tf.not_equal: K.not_equal, tf.greater: K.greater, tf.greater_equal: K.greater_equal, tf.less: K.less,
        tf.less_equal: K.less_equal, tf.logical_and: K.logical_and, tf.logical_or: K.logical_or,
        tf.logical_not: K.logical_not, tf.where: K.where, tf.cast: K.cast, tf.einsum: K.einsum,
        tf.zeros_like: K.zeros_like, tf.ones_like: K.ones_like, tf.stop_gradient: K.stop_gradient,
        tf.tile: K.tile, tf.repeat: K.repeat, tf.sign: K.sign, tf.round: K.round, tf.broadcast_to: K.broadcast_to,
    }  # fmt: skip
    own: dict[Any, Translation] = {
        tf.zeros: lambda shape, dtype=None: K.zeros(shape, dtype),
        tf.identity: lambda input: input,
        tf.add_n: lambda inputs: sum(inputs[1:], inputs[0]),
        math.squared_difference: lambda x, y: K.square(K.subtract(x, y)),
        nn.gelu: lambda features, approximate=False: K.gelu(features, approximate),
        tf.transpose: lambda a, perm=None: K.transpose(a, perm),
        tf.expand_dims: lambda input, axis: K.expand_dims(input, axis),
        tf.squeeze: lambda input, axis=None: K.squeeze(input, axis),
        tf.concat: lambda values, axis: K.concatenate(values, axis),
        tf.stack: lambda values, axis=0: K.stack(values, axis),
        tf.unstack: lambda value, num=None, axis=0: K.unstack(value, num, axis),
        tf.reverse: lambda tensor, axis: K.flip(tensor, tuple(axis) if isinstance(axis, Sequence) else axis),
        tf.shape: lambda input, out_type=None: K.shape(input),
        tf.argmax: lambda input, axis=None, output_type="int64": K.cast(K.argmax(input, axis or 0), output_type),
        tf.cumsum: lambda x, axis=0: K.cumsum(x, axis),
        tf.norm: lambda tensor, ord="euclidean", axis=None, keepdims=False: K.norm(
            tensor, None if ord == "euclidean" else ord, axis, keepdims
        ),
        # TensorFlow's epsilon bounds the square of the length.
        tf.linalg.l2_normalize: lambda x, axis=None, epsilon=1e-12: K.normalize(x, axis, 2, epsilon**0.5),
        nn.softmax: lambda logits, axis=None: K.softmax(logits, -1 if axis is None else axis),
        nn.log_softmax: lambda logits, axis=None: K.log_softmax(logits, -1 if axis is None else axis),
        tf.pad: _pad,
        tf.split: _split,
        tf.matmul: _matmul,
        tf.tensordot: lambda a, b, axes: K.tensordot(a, b, axes),
        tf.linalg.matvec: lambda a, b: K.squeeze(K.matmul(a, K.expand_dims(b, -1)), -1),
        tf.gather: _gather,
        tf.reshape: _reshape,
    }
    reduced = {function: _reduction(reduce) for function, reduce in reductions.items()}
    ordered = {function: _ordered(function, same) for function, same in alike.items()}
    return {_key(function): translation for function, translation in {**own, **reduced, **ordered}.items()}


def _ordered(function: Any, same: Translation) -> Translation:
    # Arguments in the same order under other names.
    def call(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(function).bind(*args, **kwargs)
        return same(*given.args, **given.kwargs)

    return call


def _reduction(reduce: Translation) -> Translation:
    def call(input_tensor: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return reduce(input_tensor, axis=tuple(axis) if isinstance(axis, list) else axis, keepdims=keepdims)

    return call


def _pad(tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: Any = 0) -> Any:
    mode = mode.lower()
    return K.pad(tensor, paddings, mode, constant_values if mode == "constant" else None)


def _split(value: Any, num_or_size_splits: Any, axis: int = 0) -> Any:
    if isinstance(num_or_size_splits, int):
        return K.split(value, num_or_size_splits, axis)
    sizes = list(num_or_size_splits)
    if -1 in sizes:  # What the others leave.
        sizes[sizes.index(-1)] = value.shape[axis] - sum(sizes) - 1
    return K.split(value, [sum(sizes[:place]) for place in range(1, len(sizes))], axis)


def _matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    first = K.swapaxes(a, -1, -2) if transpose_a else a
    return K.matmul(first, K.swapaxes(b, -1, -2) if transpose_b else b)


def _gather(
    params: Any, indices: Any, validate_indices: Any = None, axis: int | None = None, batch_dims: int = 0
) -> Any:
    axis = batch_dims if axis is None else axis
    if batch_dims == 0:
        return K.take(params, indices, axis)
    if batch_dims == 1 and axis == 1 and len(indices.shape) == 1:
        # One step of each sequence, such as the last valid one.
        places = K.reshape(indices, (-1, *[1] * (len(params.shape) - 1)))
        return K.squeeze(K.take_along_axis(params, places, axis=1), 1)
    raise NotImplementedError("tf.gather with these batch_dims is not known here: use keras.ops.take_along_axis")


def _reshape(tensor: Any, shape: Any) -> Any:
    # Of sizes that are not known until the model runs, one may be left to `reshape`.
    return K.reshape(tensor, tuple(-1 if size is None else size for size in shape))
