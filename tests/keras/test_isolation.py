"""The user's model while verbs run: nothing is written to it, it answers in another thread, and threads plan alike."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.backend.common.stateless_scope import in_stateless_scope

import reprune
from tests.helpers.keras_models import outputs

L = keras.layers


def _stateful() -> Any:
    x = inputs = keras.Input(batch_shape=(4, None, 3))
    x = L.LSTM(6, return_sequences=True, stateful=True)(x)
    x = L.BatchNormalization()(L.Dropout(0.5)(x))
    x = L.Bidirectional(L.GRU(5))(x)
    model = keras.Model(inputs, L.Dense(2)(x))
    model.compile("adam", "mse")
    model.layers[1].trainable = False
    model.train_on_batch(_batches()[0], np.zeros((4, 2)))
    return model


def _random() -> Any:
    x = inputs = keras.Input((None, 3))
    x = L.Dropout(0.3)(x, training=True)
    return keras.Model(inputs, L.Dense(2)(L.SimpleRNN(6)(x)))


def _plain() -> Any:
    x = inputs = keras.Input((None, 3))
    return keras.Model(inputs, L.Dense(2)(L.LSTM(6)(L.LSTM(6, return_sequences=True)(x))))


MODELS: dict[str, Callable[[], Any]] = {"stateful": _stateful, "random": _random}


def _batches() -> list[Any]:
    return list(np.random.default_rng(0).normal(size=(3, 4, 3, 3)).astype("float32"))


def _loss(model: Any, batch: Any) -> Any:
    return keras.ops.mean(keras.ops.square(model(batch)))


def _small(model: Any) -> Any:
    return reprune.prune(model, _batches(), 0.5, method="iss-norm", verify=False).model


VERBS: dict[str, Callable[[Any], Any]] = {
    "inspect": lambda model: reprune.inspect(model, _batches()),
    "plan": lambda model: reprune.plan(model, _batches(), 0.5),
    "plan by loss": lambda model: reprune.plan(model, _batches(), 0.5, method="taylor", loss=_loss),
    "distill": lambda model: reprune.distill(_small(model), model, _batches(), 2),
    "prune and mask": lambda model: reprune.mask(model, reprune.prune(model, _batches(), 0.5, method="iss-gm").plan),
}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Variables that are assigned to, but for assignments that a scope drops."""
    found: list[Any] = []
    original = keras.Variable.assign

    def assign(variable: Any, value: Any) -> Any:
        if not in_stateless_scope():
            found.append(variable)
        return original(variable, value)

    monkeypatch.setattr(keras.Variable, "assign", assign)
    return found


def _state(model: Any) -> tuple[Any, ...]:
    layers = [(layer.name, layer.trainable, layer.built, sorted(vars(layer))) for layer in model.layers]
    return model.compiled, layers, [np.array(variable) for variable in _variables(model)]


def _variables(model: Any) -> list[Any]:
    states = [state for layer in model.layers for state in keras.tree.flatten(getattr(layer, "states", None))]
    return [*model.variables, *(state for state in states if state is not None)]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_written(name: str, verb: str, written: list[Any]) -> None:
    model = MODELS[name]()
    own = {id(variable) for variable in _variables(model)}
    before = _state(model)
    written.clear()
    VERBS[verb](model)
    assert [variable.path for variable in written if id(variable) in own] == []
    after = _state(model)
    assert after[:2] == before[:2]
    for one, other in zip(after[2], before[2], strict=True):
        np.testing.assert_array_equal(one, other)


def test_threads_plan_alike_while_the_model_answers() -> None:
    model = _plain()
    batches = [np.asarray(batch) for batch in _batches()]
    wanted = reprune.plan(model, batches, 0.5).to_json()
    answer = outputs(model, batches[0])[0]
    with ThreadPoolExecutor(3) as pool:
        plans = [pool.submit(lambda: reprune.plan(model, batches, 0.5).to_json()) for _ in range(2)]
        while not all(plan.done() for plan in plans):
            np.testing.assert_array_equal(outputs(model, batches[0])[0], answer)
    assert [plan.result() for plan in plans] == [wanted, wanted]
