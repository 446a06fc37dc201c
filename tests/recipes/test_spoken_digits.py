"""What the README says of spoken digits: minutes long, on data that is not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reprune.recipes import youtube8m
from reprune.recipes.options import Options

DATA = Path(os.environ.get("REPRUNE_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "spoken_digits_yt8m"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no spoken digits in {DATA}; set REPRUNE_DATA")
@pytest.mark.parametrize(
    ("ratio", "schedule", "loss"), [(0.5, "after", 0.01), (0.75, "after", 0.03), (0.5, "soft:200", 0.01)]
)
def test_spoken_digits(ratio: float, schedule: str, loss: float, tmp_path: Path) -> None:
    options = Options(
        train=(str(DATA / "train*.tfrecord"),),
        validate=(str(DATA / "test00.tfrecord"),),
        features={"audio": 128},
        classes=16,
        hidden=128,
        batch_size=32,
        learning_rate=3e-3,
        epochs=15,
        ratio=ratio,
        schedule=schedule,
        accelerator="cpu",
        progress=False,
    )
    summary = youtube8m.run(options, tmp_path)
    dense, pruned = summary["dense"], summary["pruned"]
    assert dense["gap"] >= 0.95
    assert pruned["gap"] >= dense["gap"] - loss
    assert pruned["macs"] < dense["macs"] / 2
