"""Every kind of method on every kind of width: the plan is met exactly, whatever decided."""

from __future__ import annotations

import pytest
import torch

import reprune
from tests.helpers.torch_oracle import check_oracle, converted, prepared
from tests.helpers.width_zoo import WIDTH_CASES, WidthCase

SOME = [WIDTH_CASES[name] for name in ("Crnn", "Grouped", "GatedConvolutions", "HeadsByView", "SelectiveScan")]


@pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")
@pytest.mark.parametrize("method", ["reconstruct", "iss-gm", "pfa-kl", "iss-gm-structure+mean", "taylor", "fsdp"])
@pytest.mark.parametrize("case", SOME, ids=str)
def test_pruned_equals_masked(case: WidthCase, method: str) -> None:
    torch.manual_seed(0)
    model = prepared(case.build().double(), train=False)
    batches = [converted(case.batch(3, 6), torch.float64) for _ in range(3)]
    calibration = reprune.calibrate(
        model,
        batches,
        methods=[method],
        labels=lambda batch: torch.arange(3) % 2,
        loss=lambda network, batch: network(batch).square().mean(),
        scope="all",
    )
    result = calibration.prune(None if method == "pfa-kl" else 0.4, method=method)
    assert sum(result.plan.counts().values()) < sum(calibration.structure.counts().values())
    check_oracle(model, result.plan, batches[0])
    assert all(name in str(result) for name in case.free)
