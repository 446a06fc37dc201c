"""The recipe in Keras: the same records, options and summary as in PyTorch."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from safetensors.numpy import load_file

from reprune.core.errors import RecipeError
from reprune.core.plan import Plan
from reprune.core.saving.arrays import StoredArrays
from reprune.recipes.run.folder import RunFolder
from reprune.recipes.run.interrupts import InterruptedRunError
from reprune.recipes.run.options import Options
from reprune.recipes.video import recipe as youtube8m
from reprune.recipes.video.answers import VideoAnswers
from reprune.recipes.video.data import Videos

keras = pytest.importorskip("keras")
graph_of = pytest.importorskip("reprune.keras.tracing.graph").graph_of
verbs = pytest.importorskip("reprune.keras")
keras_recipe = pytest.importorskip("reprune.recipes.run.keras_recipe")
keras_youtube8m = pytest.importorskip("reprune.recipes.video.keras_recipe")
Checkpoints = pytest.importorskip("reprune.recipes.run.keras_training").Checkpoints

# Keras 3.15 on TensorFlow 2.21 with NumPy 2: its `predict` and `fit` convert tensors in a way that NumPy warns about.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
STEPS = 6  # of an epoch: 90 videos in batches of 16


@pytest.fixture(scope="module")
def keras_tiny(tiny: Options) -> Options:
    return replace(tiny, framework="keras")


SLOW = [pytest.param(schedule, marks=pytest.mark.slow) for schedule in ("soft:3", "gradual:3")]


@pytest.fixture(scope="module", params=["after", SLOW[0], "gradual:3"])
def run(request: pytest.FixtureRequest, keras_tiny: Options, tmp_path_factory: pytest.TempPathFactory) -> Any:
    # Every selection compiles anew.
    options = replace(keras_tiny, schedule=request.param, epochs=1 if request.param == "gradual:3" else 2)
    folder = tmp_path_factory.mktemp("run")
    return options, folder, youtube8m.run(options, folder)


def test_summary_is_that_of_pytorch(run: Any, tiny: Options, tmp_path: Path) -> None:
    options, folder, summary = run
    other = youtube8m.run(replace(tiny, epochs=1, finetune_epochs=0, schedule=options.schedule), tmp_path / "torch")
    assert summary == json.loads((folder / "summary.json").read_text())
    assert list(summary) == list(other)
    for name in ("dense", "pruned"):
        assert set(summary[name]) == set(other[name])
    # The same counts of the same model, but for PyTorch's second bias of each LSTM.
    # The output layer runs once a video, and the two traced different ones: how many frames share it is rounded.
    assert abs(summary["dense"]["macs"] - other["dense"]["macs"]) <= 1
    assert other["dense"]["parameters"] - summary["dense"]["parameters"] == 4 * (4 + 4 + 8)
    assert [units[0] for units in summary["units"].values()] == [units[0] for units in other["units"].values()]
    for file in ("plan.json", "model.safetensors", "report.html", "logs/train/metrics.csv", "logs/train/tensorboard"):
        assert (folder / file).exists()


def test_pruned_equals_masked(run: Any) -> None:
    options, folder, summary = run
    recipe = keras_youtube8m.YouTube8M(options)
    dense = recipe.load(recipe.build(), folder / "dense.safetensors")
    plan = Plan.from_json((folder / "plan.json").read_bytes())
    small = recipe.load(verbs.apply(dense, plan), folder / "checkpoints" / "pruned.safetensors")
    masked = verbs.mask(dense, plan)
    inputs, _ = next(iter(recipe.batches(options.train, training=False)))
    np.testing.assert_allclose(small.predict_on_batch(inputs), masked.predict_on_batch(inputs), rtol=1e-5, atol=1e-5)
    before, after = (sum(units[i] for units in summary["units"].values()) for i in (0, 1))
    assert abs(after / before - 0.5) <= 0.1
    assert small.count_params() == summary["pruned"]["parameters"] < dense.count_params()


def test_metrics_are_those_of_the_saved_model(run: Any) -> None:
    options, folder, summary = run
    again = youtube8m.evaluate_folder(folder, options.validate, batch_size=7, accelerator="cpu")
    for name in ("dense", "pruned"):
        for key, value in again[name].items():
            assert summary[name][key] == pytest.approx(value, abs=1e-5)


def test_batches_are_those_of_pytorch(keras_tiny: Options) -> None:
    ours = keras_youtube8m.YouTube8M(keras_tiny).batches(keras_tiny.train, training=True)
    theirs = Videos(keras_tiny).train_dataloader()
    for _ in range(2):  # Epochs: each in another order.
        pairs = list(zip(ours.dataset(), theirs, strict=True))
        assert len(pairs) == STEPS
        for (inputs, labels), share in pairs:
            batch = share.batch
            assert np.array_equal(inputs["frames"].numpy(), batch.frames.numpy())
            assert np.array_equal(inputs["lengths"].numpy(), batch.lengths.numpy())
            assert np.array_equal(labels.numpy(), batch.labels.numpy())


@pytest.mark.parametrize("run", ["after", *SLOW], indirect=True)
def test_interrupted_run_ends_with_the_same_weights(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once at the end of an epoch, and in the middle of one and of a schedule that acts in it."""
    options, folder, _ = run
    options = replace(options, checkpoint_steps=1000)
    recipe = keras_youtube8m.YouTube8M(options)
    after, steps = STEPS if options.schedule == "after" else STEPS - 1, 0
    step = Checkpoints.on_train_batch_end

    def interrupting(self: Any, batch: int, logs: Any = None) -> None:
        nonlocal steps
        steps += 1
        if steps == after:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", interrupting)
        with pytest.raises(InterruptedRunError, match=f"after {after} steps"):
            recipe.train(recipe.build(), RunFolder(tmp_path, options))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = keras_youtube8m.YouTube8M(
        replace(options, seed=1)
    ).build()  # Other weights: all must come from the checkpoint.
    resumed, plan = recipe.train(resumed, RunFolder(tmp_path, options, resume=True))
    for name, tensor in load_file(folder / "dense.safetensors").items():
        found = graph_of(resumed).weights()[name]
        np.testing.assert_allclose(found.numpy(), tensor, rtol=1e-5, atol=1e-6)
    if plan is not None:
        assert plan.kept == Plan.from_json((folder / "plan.json").read_bytes()).kept


@pytest.mark.slow
def test_taught_by_the_dense_model_after_fading_units(keras_tiny: Options, tmp_path: Path) -> None:
    options = replace(keras_tiny, schedule="fractional:2", method="fsdp", teach=0.25, epochs=1)
    summary = youtube8m.run(options, tmp_path)
    before, after = (sum(units[i] for units in summary["units"].values()) for i in (0, 1))
    assert abs(after / before - 0.5) <= 0.1
    recipe = keras_youtube8m.YouTube8M(options)
    dense = recipe.load(recipe.build(), tmp_path / "dense.safetensors")
    inputs, labels = next(iter(recipe.training_batches()))
    answers = 1 / (1 + np.exp(-dense.predict_on_batch(inputs)))
    folder = RunFolder(tmp_path / "asked", options)
    shutil.copy(tmp_path / "dense.safetensors", folder.path)
    recipe.answer(folder)
    held = VideoAnswers([StoredArrays(folder.answers / "0")], Mock(side_effect=AssertionError))
    shared = keras_youtube8m._shared(held, 0.25, inputs, labels)
    np.testing.assert_allclose(shared, 0.75 * labels + 0.25 * answers, rtol=1e-3, atol=1e-3)
    taught = load_file(tmp_path / "model.safetensors")
    plain = recipe.load(verbs.apply(recipe.build(), _cut(tmp_path)), tmp_path / "checkpoints" / "pruned.safetensors")
    keras_youtube8m.YouTube8M(replace(options, teach=0.0)).finetune(plain, RunFolder(tmp_path / "plain", options))
    assert any(not np.array_equal(weight.numpy(), taught[name]) for name, weight in graph_of(plain).weights().items())


def _cut(folder: Path) -> Plan:
    return Plan.from_json((folder / "plan.json").read_bytes()).cut_only()


def test_damaged_checkpoint(keras_tiny: Options, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "options.json").write_text(json.dumps(keras_tiny.to_dict()))
    (tmp_path / "checkpoints" / "train.ckpt").write_bytes(b"nonsense")
    with pytest.raises(RecipeError, match="cannot be read"):
        youtube8m.run(keras_tiny, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("name", "value"), [("devices", "2"), ("strategy", "ddp"), ("workers", 2), ("precision", "64-true")]
)
def test_what_only_lightning_does(keras_tiny: Options, name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"--{name} {value}.* --framework"):
        youtube8m.run(replace(keras_tiny, **{name: value}), tmp_path)


@pytest.mark.slow
def test_tensorboard_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(keras_recipe._curves(tmp_path)) == 1
    monkeypatch.setattr(keras_recipe, "find_spec", lambda _: None)
    assert keras_recipe._curves(tmp_path) == []


def test_half_precision(keras_tiny: Options, tmp_path: Path) -> None:
    options = replace(keras_tiny, precision="16-mixed", epochs=1)
    summary = youtube8m.run(options, tmp_path)
    assert np.isfinite(list(summary["pruned"].values())).all()
    assert all(tensor.dtype == np.float32 for tensor in load_file(tmp_path / "model.safetensors").values())
