"""What is compiled, and when: a function's body runs when it is compiled, or at every call where it is not."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from reprune.keras.tracing.compiled import OFTEN, STEPS, Compiled


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX always compiles, PyTorch never does")
@pytest.mark.parametrize(("steps", "plain"), [(64, 0), (4, OFTEN)])
def test_long_sequences_are_compiled_at_once_and_by_xla_when_it_pays(steps: int, plain: int) -> None:
    runs = 0

    def double(tensors: list[Any]) -> list[Any]:
        nonlocal runs
        runs += 1
        return [2 * tensor for tensor in tensors]

    found, data = Compiled(double), np.ones((3, steps, 2), dtype="float32")
    seen = []
    for _ in range(STEPS // steps + 1):
        np.testing.assert_array_equal(found([data])[0], 2 * data)
        seen.append(runs)
    assert seen[plain] == seen[-2] == plain + 1
    assert seen[-1] > seen[-2]
