"""Models measured side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from reprune.recipes.bench import bench, count_macs

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def test_rows_have_ratios_beside_times(tmp_path: Path) -> None:
    example = torch.randn(1, 6, 64)
    models = {"dense": nn.LSTM(64, 64, batch_first=True), "small": nn.LSTM(64, 16, batch_first=True)}
    found = bench(models, example, runtimes=("torch", "onnxruntime-int8"), repeats=3)
    assert [(row.model, row.runtime) for row in found.rows] == [
        (name, runtime) for runtime in ("torch", "onnxruntime-int8") for name in ("dense", "small")
    ]
    small = found.rows[3]
    assert found.reduction(small) == pytest.approx((64 + 64) * 64 / ((64 + 16) * 16))
    assert small.size_mb < found.rows[2].size_mb
    assert json.loads(found.to_json())["rows"][0]["speed_up"] == 1
    found.plot(tmp_path / "plot.svg")
    assert b"<svg" in (tmp_path / "plot.svg").read_bytes()
    assert "MACs ÷" in str(found)


def test_macs_are_those_of_the_arithmetic() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    assert count_macs(model, torch.randn(7, 3)) == 7 * (15 + 10)
    assert count_macs(nn.GRU(3, 5, bidirectional=True), torch.randn(7, 2, 3)) == 14 * 2 * 3 * 5 * (3 + 5)


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.GRU(6, 8, batch_first=True)


EXAMPLE = torch.zeros(1, 5, 6)


def test_commands(tmp_path: Path) -> None:
    from reprune.cli_deploy import deploy_app

    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(here))
        patch.chdir(here)
        path = tmp_path / "small.onnx"
        arguments = ["--model", "test_bench:build", "--example", "test_bench:EXAMPLE", "--out", str(path)]
        ran = CliRunner().invoke(deploy_app, ["export", *arguments])
        assert ran.exit_code == 0, ran.output
        assert "largest difference" in ran.output
        options = ["--example", "test_bench:EXAMPLE", "--repeats", "2", "--json", str(tmp_path / "out.json")]
        ran = CliRunner().invoke(deploy_app, ["bench", "test_bench:build", str(path), *options])
        assert ran.exit_code == 0, ran.output
    assert len(json.loads((tmp_path / "out.json").read_text())["rows"]) == 3
