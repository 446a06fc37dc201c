"""Functions of Keras 2's backend (`K.dot`) in code that is followed: done with `keras.ops`.

Those that Keras 3 has kept (`tf.keras.backend`) ask tensors of TensorFlow for what symbolic ones do not have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

K = keras.ops
_MODULES = ("keras._tf_keras.keras.backend", "keras.src.legacy.backend")


@contextmanager
def legacy_functions() -> Iterator[None]:
    """While this is entered, functions of Keras 2's backend take symbolic tensors; others they take as ever."""
    modules = [sys.modules[name] for name in _MODULES if name in sys.modules]
    held = [(module, name, getattr(module, name)) for module in modules for name in _SAME if hasattr(module, name)]
    for module, name, original in held:
        setattr(module, name, _either(original, _SAME[name]))
    try:
        yield
    finally:
        for module, name, original in held:
            setattr(module, name, original)


def _either(original: Callable[..., Any], same: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        symbolic = any(isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten((args, kwargs)))
        return (same if symbolic else original)(*args, **kwargs)

    return call


def _batch_dot(x: Any, y: Any, axes: Any = None) -> Any:
    if axes is None:
        axes = (len(x.shape) - 1, max(len(y.shape) - 2, 1))
    return keras.layers.Dot(axes)([x, y])


_SAME: dict[str, Callable[..., Any]] = {
    "dot": K.dot,
    "batch_dot": _batch_dot,
    "ndim": lambda x: len(x.shape),
    "dtype": lambda x: x.dtype,
    "mean": lambda x, axis=None, keepdims=False: K.mean(x, axis, keepdims),
    "std": lambda x, axis=None, keepdims=False: K.std(x, axis, keepdims),
    "var": lambda x, axis=None, keepdims=False: K.var(x, axis, keepdims),
    "softmax": lambda x, axis=-1: K.softmax(x, axis),
    "repeat_elements": lambda x, rep, axis: K.repeat(x, rep, axis),
    "permute_dimensions": lambda x, pattern: K.transpose(x, pattern),
    "concatenate": lambda tensors, axis=-1: K.concatenate(tensors, axis),
}
