"""Methods that look at labels or at a loss, on Keras; `test_keras_torch.py` compares their scores with PyTorch's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import reprune.keras
from reprune.core.errors import RecipeError, StatisticsError
from reprune.keras.calibration.gradients import _torch, _torch_vjp
from reprune.keras.calibration.responses import _rows
from reprune.keras.tracing.graph import array
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import outputs

L, K, T, F = zoo.L, zoo.K, zoo.T, zoo.F


def padded(count: int, seed: int) -> Any:
    """Sequences of which the odd ones end early, in zeros."""
    x = np.random.default_rng(seed).normal(size=(count, T, F)).astype("float32")
    x[1::2, -2:] = 0
    return x


def classes(batch: Any) -> Any:
    return np.arange(len(batch)) % 2


def test_scatter_of_valid_steps_by_class() -> None:
    """Between over within the classes, by hand; padding belongs to none."""
    model = zoo.sequential(L.Masking(0.0), zoo.lstm(4), L.LSTM(3), L.Dense(2))
    batches = [padded(6, seed) for seed in range(3)]
    calibration = reprune.keras.calibrate(model, batches, methods=["class-separability"], labels=classes)
    x = np.concatenate(batches)
    valid, belongs = x.any(-1), np.concatenate([classes(batch) for batch in batches])
    responses = array(model.layers[1](model.layers[0](x)))
    rows = [responses[belongs == c][valid[belongs == c]].astype("float64") for c in (0, 1)]
    centre = np.concatenate(rows).mean(0)
    between = sum(len(own) * (own.mean(0) - centre) ** 2 for own in rows)
    within = sum(((own - own.mean(0)) ** 2).sum(0) for own in rows)
    evidence = calibration._evidence.layers[model.layers[1].name]
    np.testing.assert_allclose(evidence.separability, between / within, rtol=1e-5)


@pytest.mark.parametrize(
    ("first", "wanted"), [(False, [0, 1, 10, 11, 12]), (True, [0, 10, 1, 11, 12])], ids=["sequences", "time"]
)
def test_rows_know_their_sequences(first: bool, wanted: list[int]) -> None:
    """Also where those of one time step stand together."""
    sequences = np.array([[0, 1, 2], [10, 11, 12]])[..., None]
    found = _rows("lstm", sequences, sequences[..., 0] != 2, first=first)
    np.testing.assert_array_equal(found.rows[:, 0], wanted)
    np.testing.assert_array_equal(found.sequences, found.rows[:, 0] // 10)


def test_one_number_per_class_or_per_sequence() -> None:
    model = zoo.sequential(zoo.both(4), L.LSTM(4), L.Dense(2))
    batches = [padded(8, seed) for seed in range(2)]
    forms = (classes, lambda b: np.eye(2)[classes(b)], lambda b: classes(b)[:, None], lambda b: list(classes(b)))
    plans = [reprune.keras.plan(model, batches, method="fsdp", labels=form, verify=False) for form in forms]
    assert all(plan == plans[0] for plan in plans)


def test_gradient_of_the_loss_by_differences() -> None:
    """Frozen weights count, too, and stay frozen."""
    model = zoo.sequential(zoo.lstm(4, name="frozen"), L.LSTM(3), L.Dense(2))
    model.layers[0].trainable = False
    batches = [padded(6, seed) for seed in range(2)]

    def loss(model: Any, batch: Any) -> Any:
        return K.mean(K.square(model(batch)))

    calibration = reprune.keras.calibrate(model, batches, methods=["taylor"], loss=loss)
    kernel = model.layers[0].cell.recurrent_kernel
    found = calibration._evidence.layers["frozen"]._gradients["frozen/recurrent_kernel"]
    whole, step = array(kernel), 1e-2
    for place in [(0, 0), (3, 5), (2, 15)]:
        ends = []
        for sign in (1, -1):
            moved = whole.copy()
            moved[place] += sign * step
            kernel.assign(moved)
            ends.append(np.mean([np.mean(np.square(outputs(model, batch)[0])) for batch in batches]))
        kernel.assign(whole)
        assert found[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-2, abs=1e-4)
    assert model.layers[0].trainable_weights == []
    small = reprune.keras.prune(model, batches, 0.5, method="taylor", loss=loss).model
    assert small.count_params() < model.count_params()


def test_pytorch_tells_the_weights_that_nothing_depends_on() -> None:
    torch = pytest.importorskip("torch")
    values, given = [torch.tensor([1.0, 3.0]), torch.ones(3)], [torch.tensor([1.0, 10.0])]
    variables = [SimpleNamespace(value=value) for value in values]
    for power, wanted in ((2, [2.0, 60.0]), (None, None)):

        def outputs(values: Any, power: Any = power) -> Any:
            return given if power is None else [values[0] ** power]

        _, pull = _torch(lambda run=outputs: run(values), variables)
        for used, unused in (pull(given), _torch_vjp(outputs, values, given)):
            assert unused is None
            assert used is wanted if wanted is None else used.tolist() == wanted
        assert [value.requires_grad for value in values] == [False, False]


def test_errors_say_what_to_give() -> None:
    model = zoo.sequential(zoo.lstm(4), L.LSTM(3), L.Dense(2))
    batches = [padded(6, 0)]
    with pytest.raises(StatisticsError, match="labels="):
        reprune.keras.plan(model, batches, method="fsdp")
    with pytest.raises(StatisticsError, match="loss="):
        reprune.keras.plan(model, batches, method="taylor")
    with pytest.raises(StatisticsError, match="5 labels for a batch of 6 sequences"):
        reprune.keras.plan(model, batches, method="fsdp", labels=lambda batch: np.arange(5))
    for wrong in (lambda model, batch: 1.0, lambda model, batch: model(batch), lambda model, batch: K.sum(batch)):
        with pytest.raises(StatisticsError, match="scalar"):
            reprune.keras.plan(model, batches, method="taylor", loss=wrong)
    with pytest.raises(StatisticsError, match="2 passes"):
        reprune.keras.calibrate(model, iter(batches), methods=["iss-gm", "fsdp"], labels=classes)
    for method in ("fsdp", "taylor"):
        with pytest.raises(RecipeError, match=r"reprune.keras.prune\(\)"):
            reprune.keras.PruningCallback(batches, method=method)
