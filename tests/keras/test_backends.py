"""Where else the adapter runs: on another backend than TensorFlow, and where PyTorch is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reprune.recipes.video.generated import write_shards

ROOT = Path(__file__).parents[2]
SUBSET = [
    "tests/keras/test_contract.py",
    "tests/keras/calibration/test_labels.py",
    "-k",
    "verified or gradient",
]
WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "lightning", "torchmetrics"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run(script: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PYTEST = "import pytest; sys.exit(pytest.main(['-p', 'no:cacheprovider', *sys.argv[1:]]))"


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_on_another_backend(backend: str) -> None:
    """`make backends` runs the whole contract on each."""
    pytest.importorskip(backend)
    assert "passed" in run(f"import sys; {PYTEST}", *SUBSET, KERAS_BACKEND=backend)


def test_without_pytorch() -> None:
    assert "passed" in run(WITHOUT_TORCH + PYTEST, *SUBSET)


@pytest.mark.slow
def test_the_papers_procedure_without_pytorch(tmp_path: Path) -> None:
    write_shards(tmp_path, train=40, validate=16)
    script = WITHOUT_TORCH + "from reprune.cli.app import app; app()"
    options = "--features rgb:32,audio:16 --classes 6 --hidden 8 --epochs 1 --finetune-epochs 1 --batch-size 16"
    records = ["--train", f"{tmp_path}/train*.tfrecord", "--validate", f"{tmp_path}/validate*.tfrecord"]
    said = run(
        script, "train", "youtube8m", "--framework", "keras", *records, *options.split(), "--out", f"{tmp_path}/run"
    )
    assert "GAP@20" in said
    assert (tmp_path / "run" / "summary.json").exists()
