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
    "tests/keras/calibration/test_readings.py",
    "-k",
    "verified or gradient or channels",
]
BESIDE_TORCH = "tests/keras/calibration/test_gradients.py"
WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "lightning", "torchmetrics"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
DISTRIBUTED = """
import keras
import numpy as np
import reprune

def made():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.LSTM(6, return_sequences=True), keras.layers.GRU(6), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((6, 4)), *layers])

batches = [np.random.default_rng(place).normal(size=(16, 6, 4)).astype("float32") for place in range(3)]
one = reprune.prune(made(), batches, 0.5, method="iss-gm+mean")
devices = keras.distribution.list_devices()
keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
both = reprune.prune(made(), batches, 0.5, method="iss-gm+mean")
same = list(both.plan.kept.values()) == list(one.plan.kept.values())
spread = len(both.model.weights[0].value.sharding.device_set)
print(spread, same, np.abs(np.asarray(both.model(batches[0])) - np.asarray(one.model(batches[0]))).max())
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
    assert "passed" in run(f"import sys; {PYTEST}", BESIDE_TORCH, *SUBSET, KERAS_BACKEND=backend)


def test_two_devices_plan_and_answer_as_one_does() -> None:
    """Keras's distribution API is JAX's alone: two devices that the processor plays."""
    pytest.importorskip("jax")
    said = run(DISTRIBUTED, KERAS_BACKEND="jax", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert said.split() == ["2", "True", "0.0"]


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
