"""What layers are made with."""

from __future__ import annotations

import keras
import pytest

from reprune.core.errors import UnsupportedModelError
from reprune.keras.tracing.configuration import is_cell, loose_weights, made_with, replaced, sublayers

L = keras.layers


def square(x: object) -> object:
    return x * x  # type: ignore[operator]


def test_functions_stay_functions() -> None:
    def own(x: object) -> object:
        return square(x)

    options = made_with(L.Dense(3, activation=own, kernel_initializer="zeros", name="dense"), "use_bias")
    assert options["activation"] is own
    assert (options["units"], options["name"], "use_bias" in options) == (3, "dense", False)
    # Keras's own are told by name.
    assert made_with(L.Dense(3, activation="tanh"))["activation"] == "tanh"
    assert options["kernel_initializer"]["class_name"] == "Zeros"


def test_layers_inside_are_not_built_yet() -> None:
    layer = L.Bidirectional(L.LSTM(3))
    layer.build((None, 4, 2))
    assert "build_config" in layer.get_config()["layer"]
    held = made_with(layer)["layer"]
    assert held["config"]["units"] == 3
    assert "build_config" not in held


def test_a_layer_without_a_configuration_is_named() -> None:
    class Fixed(L.Layer):
        def __init__(self, table: object) -> None:
            super().__init__()

    with pytest.raises(UnsupportedModelError, match="Fixed"):
        made_with(Fixed(object()))


def test_a_number_is_replaced_at_its_place() -> None:
    config = {"sizes": (3, [4, 5]), "units": 6}
    assert replaced(config, ("sizes", 1, 0), 7) == {"sizes": (3, [7, 5]), "units": 6}
    assert replaced(config, ("sizes", 0), 7) == {"sizes": (7, [4, 5]), "units": 6}
    assert replaced(config, ("units",), 7) == {"sizes": (3, [4, 5]), "units": 7}
    # Of an option that may be a number alone.
    assert replaced({"output_shape": 3}, ("output_shape", 0), 2) == {"output_shape": (2,)}


def test_what_a_layer_is_made_of() -> None:
    both = L.Bidirectional(L.LSTM(3))
    both.build((None, 4, 2))
    assert sublayers(both) == [both.forward_layer, both.backward_layer]
    assert loose_weights(both) == []
    assert loose_weights(both.forward_layer.cell) == ["kernel", "recurrent_kernel", "bias"]
    assert [is_cell(layer) for layer in (both.forward_layer.cell, both.forward_layer, L.Dense(2))] == [
        True, False, False,
    ]  # fmt: skip
