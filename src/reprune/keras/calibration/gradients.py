"""Gradients with respect to weights, on whichever backend runs: the one thing that `keras.ops` does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from reprune.keras.tracing.graph import array

Pull = Callable[[Sequence[Any]], list[Any]]
"""From one array per output, what these weigh, to the gradient of their sum with respect to each weight, or None."""


def vjp(function: Callable[[list[Any]], list[Any]], values: Sequence[Any], weigh: Sequence[Any]) -> list[Any]:
    """Gradients of a weighted sum of outputs, in operations of the backend, for functions that it compiles.

    Args:
        function: From tensors to tensors of floats.
        values: What it is called with.
        weigh: For each of its outputs, an array of what it weighs.

    Returns:
        One for each of the values; on TensorFlow and PyTorch None where no output depends on it.
    """
    return _VJP[keras.backend.backend()](function, list(values), weigh)


def _tensorflow_vjp(function: Callable[[list[Any]], list[Any]], values: list[Any], weigh: Sequence[Any]) -> list[Any]:
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        outputs = function(values)
    given = [tf.cast(weight, out.dtype) for weight, out in zip(weigh, outputs, strict=True)]
    found = tape.gradient(outputs, values, output_gradients=given)
    return [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in found]


def _torch_vjp(function: Callable[[list[Any]], list[Any]], values: list[Any], weigh: Sequence[Any]) -> list[Any]:
    import torch

    with torch.enable_grad():
        values = [value.detach().requires_grad_() for value in values]
        outputs = function(values)
    pairs = [(out, weight.to(out)) for out, weight in zip(outputs, weigh, strict=True) if out.requires_grad]
    if not pairs:
        return [None] * len(values)
    outs, given = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outs, values, given, allow_unused=True))


def _jax_vjp(function: Callable[[list[Any]], list[Any]], values: list[Any], weigh: Sequence[Any]) -> list[Any]:
    import jax

    outputs, back = jax.vjp(function, values)
    return list(back([weight.astype(out.dtype) for weight, out in zip(weigh, outputs, strict=True)])[0])


_VJP = {"tensorflow": _tensorflow_vjp, "torch": _torch_vjp, "jax": _jax_vjp}


def pullback(function: Callable[[], list[Any]], variables: Sequence[Any]) -> tuple[list[Any], Pull]:
    """The outputs of a function, and what takes weights of them back to gradients.

    Args:
        function: Returns tensors of floats, computed from the variables.
        variables: Keras variables, frozen ones too.

    Returns:
        The outputs, and the function to be called with one array for each of them, as often as one likes.
    """
    return _BACKENDS[keras.backend.backend()](function, variables)


def _tensorflow(function: Callable[[], list[Any]], variables: Sequence[Any]) -> tuple[list[Any], Pull]:
    import tensorflow as tf

    values = [variable.value for variable in variables]
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(values)
        outputs = function()

    def pull(weights: Sequence[Any]) -> list[Any]:
        given = [tf.cast(weight, out.dtype) for weight, out in zip(weights, outputs, strict=True)]
        found = tape.gradient(outputs, values, output_gradients=given)
        return [None if gradient is None else array(tf.convert_to_tensor(gradient)) for gradient in found]

    return outputs, pull


def _torch(function: Callable[[], list[Any]], variables: Sequence[Any]) -> tuple[list[Any], Pull]:
    import torch

    values = [variable.value for variable in variables]
    with torch.enable_grad(), _all_require_gradients(values):
        outputs = function()

    def pull(weights: Sequence[Any]) -> list[Any]:
        pairs = [
            (out, torch.as_tensor(w).to(out)) for out, w in zip(outputs, weights, strict=True) if out.requires_grad
        ]
        if not pairs:
            return [None] * len(values)
        with _all_require_gradients(values):
            found = torch.autograd.grad(
                [out for out, _ in pairs], values, [w for _, w in pairs], retain_graph=True, allow_unused=True
            )
        return [None if gradient is None else gradient.detach().cpu().numpy() for gradient in found]

    return outputs, pull


@contextmanager
def _all_require_gradients(values: Sequence[Any]) -> Iterator[None]:
    frozen = [value for value in values if not value.requires_grad]
    for value in frozen:
        value.requires_grad_(True)
    try:
        yield
    finally:
        for value in frozen:
            value.requires_grad_(False)


def _jax(function: Callable[[], list[Any]], variables: Sequence[Any]) -> tuple[list[Any], Pull]:
    import jax

    def stateless(values: list[Any]) -> list[Any]:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function()

    outputs, back = jax.vjp(stateless, [variable.value for variable in variables])

    def pull(weights: Sequence[Any]) -> list[Any]:
        given = [jax.numpy.asarray(weight, out.dtype) for weight, out in zip(weights, outputs, strict=True)]
        return [array(gradient) for gradient in back(given)[0]]

    return outputs, pull


_BACKENDS = {"tensorflow": _tensorflow, "torch": _torch, "jax": _jax}
