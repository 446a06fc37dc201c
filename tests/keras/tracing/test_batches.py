"""Batches as data sets give them: the part that the model takes is found, or the error says what to give instead."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest

import reprune
from reprune.core.errors import BatchError, BatchWarning

X, Y, MASK = np.random.default_rng(0).normal(size=(8, 6, 5)).astype("float32"), np.zeros(8), np.ones((8, 6), "float32")


class Classifier(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = keras.layers.GRU(12), keras.layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.out(self.rnn(x))


class Masked(Classifier):
    def call(self, x: Any, weight: Any) -> Any:
        return super().call(x * weight[..., None])


class Named(Classifier):
    def call(self, features: Any) -> Any:
        return super().call(features["x"])


def sequential() -> Any:
    return keras.Sequential([keras.Input((6, 5)), keras.layers.GRU(12), keras.layers.Dense(3)])


def two(as_dict: bool = False) -> Any:
    a, b = keras.Input((6, 5), name="a"), keras.Input((6, 5), name="b")
    outputs = keras.layers.Dense(3)(keras.layers.GRU(12)(keras.ops.concatenate([a, b], -1)))
    return keras.Model({"a": a, "b": b} if as_dict else [a, b], outputs)


TAKEN: dict[str, tuple[Any, Any, str]] = {
    "pair": (sequential, (X, Y), "model(batch[0])"),
    "label first": (sequential, (Y, X), "model(batch[1])"),
    "dictionary": (sequential, {"features": X, "target": Y}, "model(batch['features'])"),
    "pair, subclassed": (Classifier, (X, Y), "model(batch[0])"),
    "two inputs and labels": (two, [X, X, Y], "model(batch[:2])"),
    "nest of inputs, and labels": (two, ((X, X), Y), "model(batch[0])"),
    "names and a label before them": (lambda: two(True), {"a": X, "answer": Y, "b": X}, "model({name: batch[name]"),
    "two arguments and labels": (Masked, (X, MASK, Y), "model(*batch[:2])"),
    "two named arguments and labels": (Masked, {"x": X, "weight": MASK, "labels": Y}, "model(**{name: batch[name]"),
}


@pytest.mark.parametrize(("build", "batch", "code"), TAKEN.values(), ids=TAKEN)
def test_the_part_that_the_model_takes_is_found(build: Any, batch: Any, code: str) -> None:
    model = build()
    with pytest.warns(BatchWarning) as found:
        plan = reprune.plan(model, [batch, batch], 0.5, method="variance", verify=False)
    assert len(found) == 1
    message = str(found[0].message)
    assert code in message
    written = message.split("forward=", 1)[1].split(". Pass", 1)[0]
    again = reprune.plan(model, [batch, batch], 0.5, method="variance", verify=False, forward=eval(written))
    assert list(again.kept.values()) == list(plan.kept.values())


@pytest.mark.parametrize(
    ("build", "batch"),
    [(sequential, [X]), (two, (X, X)), (two, {"a": X, "b": X, "labels": Y}), (Named, {"x": X}), (Masked, (X, MASK))],
    ids=["list of one", "tuple", "names beside others", "a dictionary of its own", "two arguments"],
)
def test_what_fits_is_taken_without_a_word(build: Any, batch: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(reprune.inspect(build(), [batch], verify=False).prunable) == 1


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (X[:, :4], r"its inputs are frames \(None, 6, 5\)\. It was given a NumPy array \(8, 4, 5\) of float32\. Give"),
        (["text"], "a list of a str"),
        (3, "given an int"),
    ],
    ids=["too short", "text", "a number"],
)
def test_what_does_not_fit_is_told(batch: Any, expected: str) -> None:
    frames = keras.Input((6, 5), name="frames")
    model = keras.Model(frames, keras.layers.Dense(3)(keras.layers.GRU(12)(frames)))
    with pytest.raises(BatchError, match=expected):
        reprune.inspect(model, [batch])


def test_a_forward_that_fails_is_named() -> None:
    with pytest.raises(BatchError, match=r"forward\(model, batch\) does not run on the first batch: .*test_batches.py"):
        reprune.inspect(sequential(), [(X, Y)], forward=lambda model, batch: model(batch["x"]))
