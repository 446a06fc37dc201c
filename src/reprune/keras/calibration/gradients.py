"""Gradients with respect to weights, on whichever backend runs: the one thing that `keras.ops` does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from reprune.keras.tracing.graph import array

Pull = Callable[[Sequence[Any]], list[Any]]
"""From one array per output, what these weigh, to the gradient of their sum with respect to each weight, or None."""


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
