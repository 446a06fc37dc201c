"""What is compiled, and when: a function's body runs when it is compiled, or at every call where it is not."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from reprune.keras.tracing.compiled import OFTEN, STEPS, Compiled, Runner, loosely, shortened
from reprune.keras.tracing.graph import array, graph_of


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


L, K = keras.layers, keras.ops
X, Y, Z = (np.random.default_rng(0).normal(size=size).astype("float32") for size in ((4, 9, 3), (4, 5, 3), (4, 3)))


def sums(x: Any, y: Any, z: Any) -> Any:
    return K.sum(x, axis=1) + K.sum(y, axis=1) * z


@pytest.mark.parametrize(
    ("build", "batch", "options", "lengths"),
    [
        (sums, None, {}, [(2, 4), (2, 5), (2, 3)]),
        (sums, None, {"time_is_open": False}, [(2, 9), (2, 5), (2, 3)]),
        (sums, 4, {}, [(4, 9), (4, 5), (4, 3)]),
        # Nine steps are needed, and fewer leave nothing.
        (
            lambda x, y, z: L.Dense(2)(L.Reshape((27,))(x)) + K.sum(y[:, 0]) + z[:, :1],
            None,
            {},
            [(2, 9), (2, 5), (2, 3)],
        ),
        (lambda x, y, z: [z, K.sum(y, axis=1), x[:, 5:]], None, {}, [(2, 9), (2, 5), (2, 3)]),
    ],
    ids=["open", "closed", "number of sequences", "written length", "nothing left"],
)
def test_the_first_steps_of_the_first_sequences(
    build: Any, batch: int | None, options: dict[str, bool], lengths: list[tuple[int, int]]
) -> None:
    inputs = [keras.Input(batch_shape=(batch, *value.shape[1:])) for value in (X, Y, Z)]
    graph = graph_of(keras.Model(inputs, build(*inputs)))
    part, found = shortened(Runner(graph, loosely(graph)), [X, Y, Z], 2, 4, **options)
    assert [value.shape[:2] for value in part] == lengths
    for value, whole in zip(part, (X, Y, Z), strict=True):
        np.testing.assert_array_equal(value, whole[: value.shape[0], : value.shape[1]])
    expected = keras.tree.flatten(graph.root(part)) if lengths[0][1] == 9 else [array(sums(*part))]
    assert all(np.allclose(one, other, atol=1e-6) for one, other in zip(found, expected, strict=True))


def test_as_many_steps_as_are_enough_are_left() -> None:
    inputs = keras.Input((9, 3))
    graph = graph_of(keras.Model(inputs, K.sum(inputs, axis=1)))
    run = Runner(graph, loosely(graph))
    assert [shortened(run, [X], 3, steps)[0][0].shape for steps in (8, 9, 10)] == [(3, 8, 3), (3, 9, 3), (3, 9, 3)]


class Noise(L.Layer):
    """Random even when it infers, by a generator of its own or by that which all share."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.seed = keras.random.SeedGenerator(1) if own else None

    def call(self, x: Any) -> Any:
        return x + keras.random.normal(K.shape(x), seed=self.seed)


@pytest.mark.parametrize("own", [True, False])
def test_random_numbers_are_those_of_a_draw(own: bool) -> None:
    inputs = keras.Input((9, 3))
    run = Runner(graph_of(keras.Model(inputs, Noise(own)(inputs))))
    first, again, other = (run.arrays([X], draw=draw)[0] for draw in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    np.testing.assert_array_equal(run.arrays([X])[0], first)


def test_tokens_are_steps_and_numbers_and_what_is_left_out_are_none() -> None:
    tokens, weights = keras.Input((9,), dtype="int32"), keras.Input(())
    other = keras.Input((9,), optional=True)
    model = keras.Model([tokens, weights, other], K.sum(K.cast(tokens, "float32"), axis=1) * weights)
    graph = graph_of(model)
    words, scale = np.arange(36).reshape(4, 9), np.arange(4.0)
    part, found = shortened(Runner(graph, loosely(graph)), [words, scale, None], 2, 4)
    np.testing.assert_array_equal(part[0], words[:2, :4])
    np.testing.assert_array_equal(part[1], scale[:2])
    assert part[2] is None
    np.testing.assert_allclose(found[0], words[:2, :4].sum(1) * scale[:2])
