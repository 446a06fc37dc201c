"""Distillation in Keras: what is compared, beside PyTorch's; what it learns; what it leaves alone."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from scipy.special import expit, log_softmax

import reprune
from reprune.core.answers.divergence import apart
from reprune.core.errors import StatisticsError
from reprune.keras.calibration.pupil import made_by_sigmoid
from reprune.keras.tracing.graph import array, graph_of
from reprune.keras.training.distill import Comparison

L = keras.layers


def batches(count: int = 4, seed: int = 1) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(16, 6, 4)).astype("float32") for _ in range(count)]


def tagger(activation: str | None = None) -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 4))
    values = L.LSTM(8, return_sequences=True, dropout=0.5)(inputs)
    return keras.Model(inputs, L.Dense(3, activation=activation)(values))


def kinds() -> dict[str, tuple[Any, Any]]:
    first, second = (np.random.default_rng(seed).normal(size=(2, 5, 4)) for seed in (0, 1))
    ruled_out = np.full((2, 5, 1), -np.inf)
    return {
        "numbers": (first, second),
        "ruled out": (np.concatenate([first, ruled_out], 2), np.concatenate([second, ruled_out], 2)),
        "distributions": (np.exp(log_softmax(first, -1)), np.exp(log_softmax(second, -1))),
        "probabilities, one by one": (expit(first), expit(second)),
        "a probability, one by one": (expit(first[..., :1]), expit(second[..., :1])),
    }


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("name", [None, "kl", "bce", "mse", "cosine"])
def test_what_is_compared_is_what_numpy_compares(kind: str, name: str | None) -> None:
    found, wanted = kinds()[kind]
    chances = "one by one" in kind
    compare = Comparison([found], [wanted], name, [0] if chances else [])
    tensors = [[keras.ops.convert_to_tensor(part)] for part in (found, wanted)]
    expected = float(apart(found, wanted, name, chances=chances))
    assert float(compare(*tensors)) == pytest.approx(expected, rel=1e-9)


def test_a_sigmoid_is_known_by_its_layer() -> None:
    assert [made_by_sigmoid(graph_of(tagger(name))) for name in ("sigmoid", "relu", None)] == [[0], [], []]


def test_it_comes_closer_on_inputs_it_has_not_seen() -> None:
    dense = tagger("softmax")
    result = reprune.prune(dense, batches(), 0.5, method="random+reconstruct")
    (new,) = batches(1, seed=9)
    wanted, before = dense(new), result.model(new)
    held = [array(weight) for weight in dense.weights]
    said: list[float] = []
    small = reprune.distill(
        result.model, dense, batches(), 100, learning_rate=0.01, progress=lambda _, far: said.append(far)
    )
    assert small is result.model
    assert apart(array(small(new)), array(wanted)) < 0.5 * apart(array(before), array(wanted))
    assert np.mean(said[-4:]) < 0.5 * np.mean(said[:2])
    assert all(np.array_equal(array(weight), value) for weight, value in zip(dense.weights, held, strict=True))


def test_it_leaves_alone_what_it_should() -> None:
    dense = tagger()
    dense.compile("sgd", "mse")
    small = reprune.prune(dense, batches(), 0.5).model
    small.layers[1].trainable = False
    frozen = [array(weight) for weight in small.layers[1].weights]
    reprune.distill(small, dense, batches(), 3)
    assert all(np.array_equal(array(w), held) for w, held in zip(small.layers[1].weights, frozen, strict=True))
    assert type(small.optimizer) is keras.optimizers.SGD
    assert small.loss == "mse"


def test_dropout_is_off_and_states_stay() -> None:
    """A model that is compared with itself has nothing to learn."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(batch_shape=(16, 6, 4))
    dense = keras.Model(inputs, L.Dense(3)(L.GRU(8, stateful=True, dropout=0.5)(inputs)))
    data = [batches(1)[0]]
    dense.predict(data[0], verbose=0)
    before = array(dense.layers[1].states[0])
    small = reprune.prune(dense, data, 0.0).model
    small.layers[1].states[0].assign(before)
    said: list[float] = []
    reprune.distill(small, dense, data, 2, learning_rate=0.0, progress=lambda _, far: said.append(far))
    assert said == pytest.approx([0, 0], abs=1e-6)
    for model in (dense, small):
        np.testing.assert_array_equal(array(model.layers[1].states[0]), before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batches": iter(batches())}, "gives only one pass: give a list or a data loader"),
        ({"batches": batches()[0]}, "batches is a single ndarray"),
        ({"steps": 0}, "steps=0 must be a whole number, at least 1"),
        ({"divergence": lambda found, wanted: keras.ops.sum(found[0]) * np.nan}, "became nan at step 1"),
    ],
)
def test_wrong_use_is_told_and_changes_nothing(wrong: dict[str, Any], message: str) -> None:
    dense = tagger()
    small = reprune.prune(dense, batches(), 0.5).model
    before = [array(weight) for weight in small.weights]
    with pytest.raises(StatisticsError, match=message):
        reprune.distill(small, dense, **{"batches": batches(), "steps": 5, **wrong})
    assert all(np.array_equal(array(weight), held) for weight, held in zip(small.weights, before, strict=True))


def test_nothing_that_may_change() -> None:
    dense = tagger()
    small = reprune.prune(dense, batches(), 0.5).model
    small.trainable = False
    with pytest.raises(StatisticsError, match="No weight of Functional may change"):
        reprune.distill(small, dense, batches(), 5)
