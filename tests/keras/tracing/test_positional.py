"""Arguments of models whose `call` takes several."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from reprune.core.errors import UnsupportedModelError
from reprune.keras.tracing.positional import Arguments, ManyArguments, arguments_of, called_with, wanted_arguments

A, B = np.zeros((2, 3)), np.ones((2, 3))


class One(keras.Model):
    def call(self, x: Any, factor: Any = None, training: bool = False) -> Any:
        return x


class Two(keras.Model):
    def call(self, x: Any, y: Any, *rest: Any, mask: Any = None, **options: Any) -> Any:
        return x


def many() -> Any:
    inputs = [keras.Input((3,), name=name) for name in "ab"]
    return ManyArguments(inputs=inputs, outputs=keras.ops.subtract(*inputs))


def told(found: Any) -> Any:
    return (found.names, found.values) if isinstance(found, Arguments) else found


def test_the_arguments_without_which_a_model_cannot_be_called() -> None:
    assert wanted_arguments(One()) == ["x"]
    assert wanted_arguments(Two()) == ["x", "y"]


def test_what_a_model_is_called_with() -> None:
    assert arguments_of(One(), A) is A
    assert arguments_of(One(), A, training=True) is A
    assert arguments_of(One(), x=A, mask=None) is A
    assert told(arguments_of(One(), A, B)) == (("x", "factor"), (A, B))
    assert told(arguments_of(One(), factor=B, x=A)) == (("x", "factor"), (A, B))
    names, values = told(arguments_of(Two(), A, [A, B]))
    assert (names, values[0]) == (("x", "y"), A)
    for wrong in (3, [], [A, 3]):
        with pytest.raises(UnsupportedModelError, match="which is no tensor"):
            arguments_of(Two(), A, wrong)


def test_a_batch_stands_for_several_arguments_where_they_are_asked_for() -> None:
    pair, names = (A, B), {"y": B, "x": A}
    assert called_with(One(), pair) is pair
    assert called_with(One(), names) is names
    assert told(called_with(Two(), pair)) == (("x", "y"), (A, B))
    assert told(called_with(Two(), names)) == (("x", "y"), (A, B))
    others = {"x": A}
    assert called_with(Two(), others) is others
    several = [A, B]
    assert called_with(Two(), several) is several
    assert called_with(many(), pair) is pair


def test_a_model_of_several_inputs_takes_them_in_every_way() -> None:
    model = many()
    expected = A - B
    for found in (model(A, B), model(b=B, a=A), model(A, b=B), model([A, B]), model(A, B, training=True)):
        np.testing.assert_array_equal(found, expected)
    assert [value is wanted for value, wanted in zip(arguments_of(model, A, b=B), (A, B), strict=True)] == [True, True]
