"""The contract of all adapters, on Keras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reprune.keras.tracing.graph import array
from tests.contract.trust import TrustContract
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import outputs


class TestKeras(TrustContract):
    def chain(self) -> Any:
        return zoo.sequential(zoo.both(6), zoo.L.LSTM(8), zoo.L.Dense(2))

    def residual(self) -> Any:
        return zoo.functional(zoo.residual)

    def open_end(self) -> Any:
        return zoo.sequential(zoo.lstm(6), zoo.lstm(5))

    def batches(self) -> list[Any]:
        rng = np.random.default_rng(5)
        return [rng.normal(size=(16, zoo.T, zoo.F)).astype("float32") for _ in range(3)]

    def outputs(self, model: Any, batch: Any) -> list[Any]:
        return outputs(model, batch)

    def weights(self, model: Any) -> list[Any]:
        return [array(weight) for weight in model.weights]

    def set_weights(self, model: Any, values: Sequence[Any]) -> None:
        model.set_weights(values)
