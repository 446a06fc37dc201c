"""What the Keras tests share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from reprune.core.decide import free_blocks
from reprune.core.layers import Structure
from reprune.core.plan import Plan
from reprune.keras.tracing.graph import array

# float32: rounding of sums in another order.
RELATIVE = 1e-5


@contextmanager
def in_double() -> Iterator[None]:
    """In this context, models are made in double precision."""
    # The policy, too: Keras keeps the one of the first layer that anybody made.
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before)
        keras.config.set_dtype_policy(policy)


def outputs(model: Any, inputs: Any) -> list[Any]:
    """All outputs of a model as arrays."""
    return [array(value) for value in keras.tree.flatten(model(inputs))]


def error(first: list[Any], second: list[Any]) -> float:
    """The largest difference relative to the largest value."""
    assert [a.shape for a in first] == [b.shape for b in second]
    return max(float(np.abs(a - b).max() / (np.abs(a).max() + 1e-12)) for a, b in zip(first, second, strict=True))


def some_plan(structure: Structure, seed: int = 0) -> Plan:
    """A plan that removes a random number of random units from every layer that can lose some."""
    rng = np.random.default_rng(seed)
    kept = {name: list(range(layer.units)) for name, layer in structure.layers.items()}
    for block in free_blocks(structure):
        units = structure.layers[block[0][0]].units
        count = int(rng.integers(1, units))
        for group in block:
            stay = sorted(rng.choice(units, size=count, replace=False).tolist())
            kept.update({name: list(stay) for name in group})
    return Plan(structure, kept)


def weights_of(model: Any) -> list[Any]:
    """Copies of all weights."""
    return [array(weight) for weight in model.weights]


def parameters(model: Any) -> int:
    """Number of parameters; running statistics are none."""
    return sum(math.prod(weight.shape) for weight in model.weights if not weight.name.startswith("moving"))
