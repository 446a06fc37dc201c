"""Every wiring: the pruned model computes what the masked one does, and the masked one is what it says."""

from __future__ import annotations

import numpy as np
import pytest

import reprune.keras
from reprune import Method
from reprune.core.budget.cost import CostModel
from reprune.core.plan import Plan
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import RELATIVE, error, outputs, parameters, some_plan, weights_of

FOLDED = Method("cost", "reconstruction", "least-squares")
REFITTED = ("both-apart", "encoder-decoder-gru", "attention", "two-outputs")
"""Models on which the whole of the default method is tried: it runs many small models."""


@pytest.mark.parametrize(
    ("name", "method"), [*((name, FOLDED) for name in zoo.EXACT), *((name, "reconstruct") for name in REFITTED)]
)
@pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")
def test_every_layer_is_observed_and_folded_exactly(name: str, method: str | Method) -> None:
    model = zoo.EXACT[name]()
    batches = [zoo.inputs_for(model, 8, seed) for seed in range(3)]
    result = reprune.keras.prune(model, batches, 0.5, method=method, verify=False)
    inputs = zoo.inputs_for(model, 2, 9)
    masked = reprune.keras.mask(model, result.plan)
    assert error(outputs(result.model, inputs), outputs(masked, inputs)) < RELATIVE


@pytest.mark.parametrize("name", zoo.EXACT)
def test_pruned_equals_masked(name: str) -> None:
    model = zoo.EXACT[name]()
    inputs = zoo.inputs_for(model)
    before = weights_of(model)
    structure = reprune.keras.trace(model, inputs)
    assert [f"{name}: {layer.pin}" for name, layer in structure.layers.items() if layer.pin] == []
    assert not any(layer.approximate for layer in structure.layers.values())
    plan = Plan.from_json(some_plan(structure, seed=len(name)).to_json())

    small = reprune.keras.apply(model, plan)
    masked = reprune.keras.mask(model, plan)
    assert error(outputs(masked, inputs), outputs(small, inputs)) < RELATIVE
    # The units mattered: an oracle that removes nothing would agree with anything.
    assert error(outputs(model, inputs), outputs(masked, inputs)) > 1e-4
    assert parameters(small) == CostModel(structure)("parameters", plan.counts())
    assert parameters(model) == CostModel(structure)("parameters", structure.counts())
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
