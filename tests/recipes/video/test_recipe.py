"""The whole procedure on generated videos: what it writes is true."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import reprune.torch as verbs
from reprune.core.errors import RecipeError, RecordError
from reprune.core.plan import Plan
from reprune.recipes.run.options import Options
from reprune.recipes.run.quiet import quiet
from reprune.recipes.run.trainer import make_trainer
from reprune.recipes.video import recipe as youtube8m
from reprune.recipes.video.data import Share, Videos
from reprune.recipes.video.demo import train_baseline
from reprune.recipes.video.generated import CLASSES, FEATURES, write_shards
from reprune.recipes.video.tagger import Tagger
from reprune.recipes.video.torch_recipe import YouTube8M
from reprune.youtube8m.metrics import VideoMetrics
from reprune.youtube8m.model import VideoClassifier

NUMBERS = {"gap", "map", "hit_at_1", "perr", "parameters", "macs", "latency_ms"}


@pytest.fixture(scope="module", params=["after", "soft:3"])
def run(request: pytest.FixtureRequest, tiny: Options, tmp_path_factory: pytest.TempPathFactory) -> Any:
    options = replace(tiny, schedule=request.param)
    folder = tmp_path_factory.mktemp("run")
    return options, folder, youtube8m.run(options, folder)


def test_summary_has_its_keys(run: Any) -> None:
    _, folder, summary = run
    assert summary == json.loads((folder / "summary.json").read_text())
    assert set(summary) == {"method", "ratio", "dense", "pruned", "units"}
    assert set(summary["dense"]) == set(summary["pruned"]) == NUMBERS
    assert (summary["method"], summary["ratio"]) == ("iss-gm", 0.5)
    for file in ("plan.json", "model.safetensors", "report.html", "logs/train/csv", "logs/train/tensorboard"):
        assert (folder / file).exists()


def test_sizes_are_those_of_the_files(run: Any) -> None:
    _, folder, summary = run
    for name, file in (("dense", "dense.safetensors"), ("pruned", "model.safetensors")):
        tensors = load_file(folder / file)
        assert summary[name]["parameters"] == sum(tensor.numel() for tensor in tensors.values())
        widths = {key: tensor.shape[1] for key, tensor in tensors.items() if "weight_hh" in key}
        assert sorted(widths.values()) == sorted(units[name == "pruned"] for units in summary["units"].values())
    before, after = (sum(units[i] for units in summary["units"].values()) for i in (0, 1))
    assert abs(after / before - 0.5) <= 0.1
    assert summary["pruned"]["macs"] < summary["dense"]["macs"]


def test_macs_are_counted_independently(run: Any) -> None:
    options, folder, summary = run
    _, lengths = Videos(options).example()
    for name, file in (("dense", "dense.safetensors"), ("pruned", "model.safetensors")):
        tensors = load_file(folder / file)
        per_frame = sum(t.numel() for key, t in tensors.items() if "weight_ih" in key or "weight_hh" in key)
        per_video = tensors["output.weight"].numel()
        frames = lengths.sum().item()
        # The output layer runs once a video; how many frames share it depends on the videos that were traced. The
        # summary's is a whole number.
        assert per_frame <= summary[name]["macs"] <= per_frame + per_video * len(lengths) / frames * 2 + 0.5


def test_metrics_are_those_of_the_saved_model(run: Any) -> None:
    options, folder, summary = run
    dense = VideoClassifier(sum(options.features.values()), options.classes, options.hidden, normalize=True)
    small = verbs.load(dense, folder)
    metrics = VideoMetrics(options.classes)
    with torch.no_grad():
        for batch in Videos(options).test_dataloader():
            metrics.update(small(batch.frames, batch.lengths).sigmoid().numpy(), batch.labels.numpy())
    for name, value in metrics.compute().items():
        assert summary["pruned"][name] == pytest.approx(value, abs=1e-6)


def test_evaluating_the_folder_again(run: Any) -> None:
    options, folder, summary = run
    again = youtube8m.evaluate_folder(folder, options.validate, batch_size=7, accelerator="cpu")
    for name in ("dense", "pruned"):
        for key, value in again[name].items():
            assert summary[name][key] == pytest.approx(value, abs=1e-5)


def test_padding_never_counts(run: Any) -> None:
    options, _, _ = run
    model = VideoClassifier(sum(options.features.values()), options.classes, options.hidden).eval()
    frames, lengths = Videos(options).example()
    longer = torch.nn.functional.pad(frames, (0, 0, 0, 9), value=200)
    with torch.no_grad():
        alone = torch.cat([model(frames[i : i + 1, :n], lengths[i : i + 1]) for i, n in enumerate(lengths)])
        torch.testing.assert_close(model(longer, lengths), alone)


def test_plan_of_soft_pruning_is_of_the_final_weights(run: Any) -> None:
    options, folder, _ = run
    plan = Plan.from_json((folder / "plan.json").read_bytes())
    dense = YouTube8M(options).build()
    dense.load_state_dict(load_file(folder / "dense.safetensors"))
    small = load_file(folder / "checkpoints" / "pruned.safetensors")
    for name, tensor in verbs.apply(dense, plan).state_dict().items():
        assert torch.equal(tensor, small[name])


def test_no_fine_tuning_keeps_the_pruned_weights(tiny: Options, tmp_path: Path) -> None:
    youtube8m.run(replace(tiny, epochs=1, finetune_epochs=0), tmp_path / "run")
    pruned = load_file(tmp_path / "run" / "checkpoints" / "pruned.safetensors")
    final = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(tensor, final[name]) for name, tensor in pruned.items())


def test_learning_rate_falls_in_steps_of_examples(tiny: Options) -> None:
    options = replace(tiny, decay=0.5, decay_examples=48)  # three batches
    module = Tagger(VideoClassifier(48, CLASSES, 8), options)
    found = module.configure_optimizers()
    optimizer, staircase = found["optimizer"], found["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"] / options.learning_rate)
        optimizer.step()
        staircase.step()
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_the_output_layer_is_held_small_by_the_loss(tiny: Options) -> None:
    """As in Keras: its gradient is clipped with that of the answers. A process without videos left takes part."""
    share = next(iter(Videos(tiny).train_dataloader()))
    gradients = []
    for decay, given in ((0.0, share), (0.3, share), (0.3, Share(None, 5))):
        torch.manual_seed(0)
        module = Tagger(VideoClassifier(48, CLASSES, 8), replace(tiny, output_decay=decay))
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        module.training_step(given, 0).backward()
        gradients.append({name: parameter.grad for name, parameter in module.model.named_parameters()})
    held = 0.3 * module.model.get_parameter("output.weight")
    for name, gradient in gradients[0].items():
        added = held if name == "output.weight" else torch.zeros(())
        torch.testing.assert_close(gradients[1][name], gradient + added)
        torch.testing.assert_close(gradients[2][name], added.expand_as(gradient))


def test_order_cannot_be_seen_by_averaging(tmp_path: Path) -> None:
    """The demo's point: the recurrent model learns the classes, the mean of the frames does not hold them."""
    write_shards(tmp_path, train=320, validate=100, shards=1)
    options = Options(
        train=(str(tmp_path / "train*"),),
        validate=(str(tmp_path / "validate*"),),
        features=FEATURES,
        classes=CLASSES,
        hidden=32,
        normalize=False,
        epochs=4,
        batch_size=16,
        learning_rate=1e-2,
        accelerator="cpu",
        progress=False,
    )
    with quiet():
        baseline = train_baseline(options)
        model = YouTube8M(options).build()
        make_trainer(options, epochs=options.epochs).fit(Tagger(model, options), Videos(options))
        recurrent = YouTube8M(options).measure(model)
    assert baseline["gap"] < 0.3
    assert recurrent["gap"] > baseline["gap"] + 0.5


def test_wrong_files_are_reported_before_anything_is_spent(tiny: Options, tmp_path: Path) -> None:
    for name in ("empty0", "empty1"):
        (tmp_path / f"{name}.tfrecord").touch()
    empty = (str(tmp_path / "empty*.tfrecord"),)
    for option in ("train", "validate", "test"):
        with pytest.raises(RecordError, match=rf"--{option} .*empty\*.tfrecord: 0 records to read in 2 files"):
            youtube8m.run(replace(tiny, **{option: empty}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecordError, match="no file matches"):
        youtube8m.run(replace(tiny, validate=("nowhere*",)), tmp_path / "run")


def test_folder_in_use(tiny: Options, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RecipeError, match="new or empty folder"):
        youtube8m.run(tiny, tmp_path)


def test_run_in_the_folder(run: Any) -> None:
    options, folder, _ = run
    with pytest.raises(RecipeError, match="add --resume"):
        youtube8m.run(options, folder)


def test_resume_with_other_options(run: Any) -> None:
    options, folder, _ = run
    with pytest.raises(RecipeError) as error:
        youtube8m.run(replace(options, hidden=10, ratio=0.25, accelerator="auto"), folder, resume=True)
    assert "--hidden: 8 before, 10 now" in str(error.value)
    assert "--ratio: 0.5 before, 0.25 now" in str(error.value)
    assert "accelerator" not in str(error.value)


def test_folder_that_cannot_be_written(tiny: Options, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be written"):
        youtube8m.run(tiny, tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ratio", 1.0, "not a fraction"),
        ("schedule", "sometimes", "is not a schedule"),
        ("schedule", "soft:0", "is not a schedule"),
        ("method", "magic", "magic"),
        ("of", "weights", "not a measure"),
        ("hidden", 7, "must be even"),
        ("epochs", 0, "--epochs 0"),
        ("batch_size", 0, "--batch-size 0"),
        ("learning_rate", 0.0, "--learning-rate"),
        ("on_error", "ignore", "--on-error"),
        ("train", (), "--train names no record files"),
        ("scope", "every", "not one of 'recurrent', 'all'"),
        ("scope", "all", "no widths but their units. Leave --scope out"),
    ],
)
def test_options_that_make_no_sense(tiny: Options, name: str, value: Any, message: str) -> None:
    with pytest.raises(Exception, match=message):
        replace(tiny, **{name: value})


def test_options_survive_json(tiny: Options) -> None:
    assert Options.from_dict(json.loads(json.dumps(tiny.to_dict()))) == tiny


def test_generated_videos_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(tmp_path / name, train=8, validate=4, shards=2)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    write_shards(tmp_path / "c", train=8, validate=4, shards=2, seed=1)
    assert not np.array_equal(*[(tmp_path / n / "train00.tfrecord").read_bytes() for n in "ac"])
