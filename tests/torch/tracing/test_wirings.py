"""Every wiring of the zoo: what is found, and that pruning is exact."""

from __future__ import annotations

import copy
import re
from functools import cache

import pytest
import torch
from torch import nn

import reprune.torch
from reprune.core.layers import Structure
from reprune.core.plan import Plan
from reprune.torch.tracing.running.copies import duplicate
from tests.helpers.torch_oracle import assert_close, check_oracle, converted, outputs, prepared, random_plans
from tests.helpers.torch_sealed import sealed
from tests.helpers.torch_zoo import CASES
from tests.helpers.torch_zoo.case import Case

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
PRUNED = [case for case in CASES.values() if not case.approximate]


@cache
def inspected(case: Case) -> tuple[nn.Module, Structure]:
    """A model in double precision and what was found in it."""
    torch.manual_seed(0)
    model = prepared(case.build().double(), train=False)
    example = converted(case.batch(3, 6), torch.float64)
    return model, reprune.torch.inspect(model, [example]).structure


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_finds_layers_pins_and_couplings(case: Case) -> None:
    _, structure = inspected(case)
    assert structure.layers
    assert set(case.pins) == {name for name, layer in structure.layers.items() if layer.pin is not None}, [
        f"{name}: {layer.pin}" for name, layer in structure.layers.items()
    ]
    for name, reason in case.pins.items():
        pin = structure.layers[name].pin
        assert re.search(reason, pin.reason), pin
        assert "/torch_zoo/" in pin.site.location, pin
    assert any(layer.approximate for layer in structure.layers.values()) == case.approximate
    for names in case.coupled:
        assert any(set(names) <= set(group) for group in structure.index_coupled), structure.index_coupled
    for names in case.equal:
        assert any(set(names) <= set(bond) for bond in structure.count_coupled), structure.count_coupled
    assert bool(structure.count_coupled) <= bool(case.equal or case.coupled or case.pins), structure.count_coupled


@pytest.mark.parametrize("case", PRUNED, ids=str)
def test_pruned_equals_masked_in_double(case: Case) -> None:
    model, structure = inspected(case)
    for seed, plan in enumerate(random_plans(structure, 3)):
        plan = Plan.from_json(plan.to_json())
        torch.manual_seed(seed + 10)
        sizes = [(2, 6), (4, 3 if case.steps else 6), (3, 9 if case.steps else 6)][seed]
        batch = converted(case.batch(*sizes), torch.float64)
        check_oracle(prepared(model, train=seed == 1), plan, batch, case.states)


@pytest.mark.parametrize("case", PRUNED, ids=str)
def test_pruned_equals_masked_in_single(case: Case) -> None:
    model, structure = inspected(case)
    model = prepared(duplicate(model).float(), train=False)
    torch.manual_seed(20)
    check_oracle(model, random_plans(structure, 1)[0], converted(case.batch(3, 6), torch.float32), case.states)


@pytest.mark.parametrize("case", PRUNED, ids=str)
@pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")
def test_every_layer_is_observed_and_folded_exactly(case: Case) -> None:
    model, structure = inspected(case)
    if all(layer.pin is not None for layer in structure.layers.values()):
        pytest.skip("all layers are pinned")
    torch.manual_seed(40)
    batches = [converted(case.batch(6, 6), torch.float64) for _ in range(3)]
    with sealed(model):
        calibration = reprune.torch.calibrate(model, batches)
    for method in ("reconstruct", "iss-gm+mean", "pfa-kl"):
        plan = calibration.plan(0.5, method=method)
        check_oracle(prepared(model, train=False), plan, converted(case.batch(3, 6), torch.float64), case.states)


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_ratio_zero_changes_nothing(case: Case) -> None:
    model, structure = inspected(case)
    plan = Plan(structure, {name: list(range(layer.units)) for name, layer in structure.layers.items()})
    torch.manual_seed(30)
    batch = converted(case.batch(2, 6), torch.float64)
    found = outputs(reprune.torch.apply(model, plan), copy.deepcopy(batch))
    for one, two in zip(found, outputs(model, batch), strict=True):
        assert_close(one, two, "output")
