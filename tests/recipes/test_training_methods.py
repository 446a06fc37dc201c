"""Methods that act on training, through the whole recipe: the right sizes, the same weights after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reprune.core.errors import RepruneError
from reprune.core.plan import Plan
from reprune.recipes.run.options import Options
from reprune.recipes.video import recipe as youtube8m
from tests.recipes.run.test_resume import CrashError, assert_same, crash_after, raise_crash


@pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")
@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        ("fsdp", "fractional:3"),
        ("iss-gm", "gradual:3"),
        ("iss-group-lasso", "after"),
        ("iss-group-lasso", "gradual:2"),
        ("neuron-selection", "after"),
        ("neuron-selection", "gradual:2"),
        ("reconstruct", "fractional:3"),
    ],
)
def test_goes_on_after_a_crash(
    method: str, schedule: str, tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(tiny, method=method, schedule=schedule, finetune_epochs=0)
    summary = youtube8m.run(options, tmp_path / "whole")
    plan = Plan.from_json((tmp_path / "whole" / "plan.json").read_bytes())
    assert abs(sum(plan.counts().values()) - 8) <= 1
    small = load_file(tmp_path / "whole" / "model.safetensors")
    assert small["recurrent.weight_hh_l0"].shape[1] == len(plan.kept["recurrent:l0"])
    assert summary["units"] == {name: [units, len(plan.kept[name])] for name, units in plan.structure.counts().items()}
    if schedule.startswith("gradual"):
        # There is no dense model: its place is taken by one of full size that computes what the small one does.
        assert summary["dense"]["gap"] == pytest.approx(summary["pruned"]["gap"], abs=1e-6)
    for steps in (5, 9):
        folder = tmp_path / str(steps)
        with monkeypatch.context() as patch:
            crash_after(patch, steps, raise_crash)
            with pytest.raises(CrashError):
                youtube8m.run(options, folder)
        youtube8m.run(options, folder, resume=True)
        assert_same(folder, tmp_path / "whole")
    assert torch.isfinite(small["output.weight"]).all()


def test_options_list_the_choices(tiny: Options) -> None:
    with pytest.raises(RepruneError, match=r"iss-gm, .*iss-group-lasso, .*neuron-selection, .*reconstruct"):
        replace(tiny, method="best")
    with pytest.raises(RepruneError, match=r"after, soft:S, fractional:S, gradual:S"):
        replace(tiny, schedule="often")
    with pytest.raises(RepruneError, match="labels"):
        replace(tiny, method="fsdp")
    with pytest.raises(RepruneError, match="the loss"):
        replace(tiny, method="taylor", schedule="soft:3")
