"""The demo, on fewer videos."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reprune.recipes.run.interrupts import InterruptedRunError
from reprune.recipes.video.demo import demo_options, run_demo
from reprune.recipes.video.tagger import Tagger


def test_demo_shows_everything_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(demo_options(tmp_path), hidden=8, epochs=1, finetune_epochs=1)
    said: list[str] = []
    monkeypatch.setattr("reprune.recipes.video.demo.VARIANTS", (("reconstruct", 0.75),))
    step = Tagger.training_step

    def interrupted(*_: object) -> torch.Tensor:
        raise InterruptedRunError("Stopped in epoch 1, after 2 steps: --resume goes on.")

    with monkeypatch.context() as patch:
        patch.setattr(
            Tagger, "training_step", lambda *a: interrupted() if (tmp_path / "baseline.json").exists() else step(*a)
        )
        with pytest.raises(InterruptedRunError, match=r"after 2 steps\. Run the same command again"):
            run_demo(tmp_path, options=options, videos=(64, 32), say=said.append)
    summary = run_demo(tmp_path, options=options, videos=(64, 32), say=said.append)
    assert set(summary["baseline"]) == {"gap", "map", "hit_at_1", "perr", "parameters"}
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == {name: value for name, value in summary.items() if name != "baseline"}
    text = "\n".join(said)
    for part in ("bidirectional:l0", "GAP@20", "baseline", "training the dense model", str(tmp_path / "report.html")):
        assert part in text
    assert (tmp_path / "report.html").exists()
    speed = json.loads((tmp_path / "speed.json").read_text())
    names = ["dense", "iss-gm 50%", "reconstruct 75%"]
    assert [row["model"] for row in speed["rows"]] == 2 * names  # In PyTorch, then in ONNX Runtime.
    assert all(name in text for name in names)
    assert "One video in ONNX Runtime, one thread" in text
    assert (tmp_path / "overview.svg").read_text().count("<rect") == 6

    said.clear()
    assert run_demo(tmp_path, options=options, videos=(64, 32), say=said.append) == summary
    assert "has run already" in said[0]


@pytest.mark.slow
def test_demo_prunes_to_half_without_loss(tmp_path: Path) -> None:
    summary = run_demo(tmp_path)
    assert summary["baseline"]["gap"] < 0.3
    assert 0.8 < summary["dense"]["gap"] < 0.97
    assert summary["pruned"]["gap"] > summary["dense"]["gap"] - 0.02
    assert summary["pruned"]["macs"] < summary["dense"]["macs"] / 2
