"""The command line on a Keras model, and what it says where a framework is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

import reprune
from reprune.cli.app import app
from reprune.keras.tracing.graph import array, graph_of

MODULE = """
import keras
import numpy as np

def build():
    keras.utils.set_random_seed(3)
    layers = keras.layers.LSTM(8, name="reader"), keras.layers.Dense(2, name="head")
    model = keras.Sequential([keras.Input((6, 3)), *layers], name="shop")
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model

def batches():
    return [np.random.default_rng(seed).normal(size=(8, 6, 3)).astype("float32") for seed in range(3)]

def score(model):
    return float(np.mean(np.asarray(model(batches()[0])) ** 2))

def finetune(model, steps):
    for _ in range(steps):
        model.train_on_batch(batches()[0], np.zeros((8, 2)))
"""
runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keras_shop.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "keras_shop", raising=False)


def run(*arguments: str) -> str:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_inspect() -> None:
    assert "head/kernel" in run("inspect", "--model", "keras_shop:build", "--example", "keras_shop:batches")


@pytest.mark.parametrize("form", [".safetensors", ".weights.h5"])
def test_prune_with_weights(form: str, tmp_path: Path) -> None:
    from keras_shop import batches, build  # type: ignore[import-not-found, unused-ignore]

    trained = build()
    for weight in trained.weights:
        weight.assign(np.random.default_rng(7).normal(size=weight.shape))
    if form == ".safetensors":
        named = {name: array(weight) for name, weight in graph_of(trained).weights().items()}
        safetensors.numpy.save_file(named, f"trained{form}")
    else:
        trained.save_weights(f"trained{form}")
    options = ["--batches", "keras_shop:batches", "--method", "magnitude", "--out", "small"]
    assert "8 → 4" in run("prune", "--model", "keras_shop:build", "--weights", f"trained{form}", *options)
    loaded = reprune.load(build(), tmp_path / "small")
    expected = reprune.prune(trained, batches(), method="magnitude").model
    np.testing.assert_allclose(array(loaded(batches()[0])), array(expected(batches()[0])), rtol=1e-6)
    Path(f"wrong{form}").write_bytes(b"nonsense")
    wrong = runner.invoke(app, ["prune", "--model", "keras_shop:build", "--weights", f"wrong{form}", *options])
    assert wrong.exit_code == 1
    assert "does not hold the weights" in wrong.output


def test_compare_with_fine_tuning() -> None:
    said = run(
        *("compare", "--model", "keras_shop:build", "--data", "keras_shop:batches", "--evaluate", "keras_shop:score"),
        *("--methods", "magnitude", "--ratios", "0.5", "--finetune", "keras_shop:finetune", "--finetune-steps", "60"),
        *("--out", "grid"),
    )
    cells = json.loads(Path("grid/comparison.json").read_text())
    assert "magnitude" in said
    metrics = {(cell["method"], cell["steps"]): cell["metric"] for cell in cells}
    assert metrics["magnitude", 60] < metrics["magnitude", 0] / 2


@pytest.mark.parametrize(("package", "extra"), [("torch", "torch"), ("lightning", "train")])
def test_missing_packages_are_named(package: str, extra: str) -> None:
    # In a process of its own: here, other tests have imported what is missing there.
    script = f"import sys; sys.modules[{package!r}] = None; from reprune.cli.app import app; app()"
    result = subprocess.run([sys.executable, "-c", script, "demo", "--out", "demo"], capture_output=True, text=True)
    assert result.returncode == 1
    assert f"pip install 'reprune[{extra}]'" in result.stderr
