"""What the README says of spoken digits: minutes long, on data that is not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reprune.recipes.run.options import Options
from reprune.recipes.video import recipe as youtube8m

DATA = Path(os.environ.get("REPRUNE_DATA", Path(__file__).parents[3].parent / "shared" / "data")) / "spoken_digits_yt8m"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no spoken digits in {DATA}; set REPRUNE_DATA"),
]


def settings(ratio: float, schedule: str = "after", framework: str = "torch") -> Options:
    return Options(
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
        framework=framework,
    )


@pytest.mark.parametrize(
    ("ratio", "schedule", "loss"), [(0.5, "after", 0.01), (0.75, "after", 0.03), (0.5, "soft:200", 0.01)]
)
def test_spoken_digits(ratio: float, schedule: str, loss: float, tmp_path: Path) -> None:
    summary = youtube8m.run(settings(ratio, schedule), tmp_path)
    dense, pruned = summary["dense"], summary["pruned"]
    assert dense["gap"] >= 0.95
    assert pruned["gap"] >= dense["gap"] - loss
    assert pruned["macs"] < dense["macs"] / 2


# Keras 3.15 on TensorFlow 2.21 with NumPy 2 converts tensors in a way that NumPy warns about.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_both_frameworks_come_out_alike(tmp_path: Path) -> None:
    pytest.importorskip("reprune.recipes.video.keras_recipe")
    ours, theirs = (
        youtube8m.run(settings(0.5, framework=framework), tmp_path / framework) for framework in ("torch", "keras")
    )
    for which in ("dense", "pruned"):
        assert abs(ours[which]["gap"] - theirs[which]["gap"]) < 0.01
