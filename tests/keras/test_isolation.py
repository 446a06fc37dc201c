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


PLANS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "0.5": lambda model, data: reprune.plan(model, data, 0.5),
    "0.25": lambda model, data: reprune.plan(model, data, 0.25),
    "iss-gm": lambda model, data: reprune.plan(model, data, 0.5, method="iss-gm"),
    "labels": lambda model, data: reprune.plan(model, data, method="fsdp", labels=lambda x: np.arange(4) % 2),
    "loss": lambda model, data: reprune.plan(model, data, method="taylor", loss=_loss),
    "scope": lambda model, data: reprune.plan(model, data, 0.5, scope="all"),
    "prune": lambda model, data: reprune.prune(model, data, 0.5).plan,
    "calibrate": lambda model, data: reprune.calibrate(model, data).plan(0.4, "macs"),
    "pruned": lambda model, data: reprune.plan(reprune.prune(model, data, 0.5).model, data, 0.2, method="magnitude"),
}


@pytest.mark.parametrize(
    ("which", "each"),
    [(["0.5", "0.25"], 1), pytest.param(list(PLANS), 3, marks=pytest.mark.slow)],
    ids=["two", "every verb"],
)
def test_threads_plan_alike_while_the_model_answers(which: list[str], each: int) -> None:
    model = _plain()
    batches = [np.asarray(batch) for batch in _batches()]
    wanted = {name: PLANS[name](model, batches).to_json() for name in which}
    answer = outputs(model, batches[0])[0]
    with ThreadPoolExecutor(len(which)) as pool:
        plans = [(name, pool.submit(PLANS[name], model, batches)) for _ in range(each) for name in which]
        while not all(plan.done() for _, plan in plans):
            np.testing.assert_array_equal(outputs(model, batches[0])[0], answer)
    assert [name for name, plan in plans if plan.result().to_json() != wanted[name]] == []
