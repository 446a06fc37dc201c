"""Two processes do together what one does alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reprune.core.errors import RecipeError
from reprune.core.plan import Plan
from reprune.recipes.language import recipe as language_model
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.run import processes
from reprune.recipes.run.options import Options, RunOptions
from reprune.recipes.video import recipe as youtube8m
from reprune.recipes.video.data import Videos
from reprune.recipes.video.generated import write_shards
from reprune.recipes.video.tagger import Tagger
from reprune.youtube8m.model import VideoClassifier
from tests.helpers.processes import in_two_processes, meet

# As a user's shell does it: Lightning starts the second process with the same arguments.
SCRIPT = """
import json, sys
from pathlib import Path
from reprune.core.plan import Plan
from reprune.recipes.language import recipe as language_model
from reprune.recipes.video import recipe as youtube8m
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.run.options import Options

recipe, options, out = sys.argv[1:4]
kind, run = {"v": (Options, youtube8m.run), "l": (LanguageOptions, language_model.run)}[recipe]
run(kind.from_dict(json.loads(options)), Path(out), resume="--resume" in sys.argv)
"""


# Put before SCRIPT: one process fails in the middle of training, its gradient still owed to the other one.
FAILING = """
from reprune.recipes.video.tagger import Tagger
step = Tagger.training_step
def failing_step(self, share, index):
    if self.global_rank == {rank} and self.trainer.global_step == 3:
        raise ValueError("the fan of process {rank} has stopped")
    return step(self, share, index)
Tagger.training_step = failing_step
"""


def start_two(options: RunOptions, out: Path, *more: str, before: str = "") -> subprocess.Popen[str]:
    script = out.with_suffix(".py")
    script.write_text(before + SCRIPT)
    given = json.dumps({**options.to_dict(), "devices": "2", "strategy": "ddp"})
    recipe = "v" if isinstance(options, Options) else "l"
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [sys.executable, str(script), recipe, given, str(out), *more],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_two(options: RunOptions, out: Path, *more: str, before: str = "", timeout: float = 300) -> tuple[int, str]:
    """Exit code, and what was said on standard error."""
    process = start_two(options, out, *more, before=before)
    try:
        _, errors = process.communicate(timeout=timeout)
    finally:
        # Whatever is left of it: the second process is a child of the first.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, errors


def assert_equal_results(first: Path, second: Path) -> None:
    one, other = (Plan.from_json((folder / "plan.json").read_bytes()) for folder in (first, second))
    assert one.kept == other.kept
    assert one.structure == other.structure
    for kind in ("scores", "spectra"):
        for layer, values in (getattr(one.diagnostics, kind) or {}).items():
            # What the responses of all processes together say.
            assert getattr(other.diagnostics, kind)[layer] == pytest.approx(values, rel=1e-3, abs=1e-5)
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (first, second))
    assert one["units"] == other["units"]
    for name in ("dense", "pruned"):
        for key, value in one[name].items():
            if key != "latency_ms":
                assert other[name][key] == pytest.approx(value, rel=1e-4), (name, key)
    for file in ("dense.safetensors", "model.safetensors"):
        one, other = (load_file(folder / file) for folder in (first, second))
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def odd(tiny: Options, tmp_path_factory: pytest.TempPathFactory) -> Options:
    """69 videos in three files: two processes have 35 and 34 of them, all in one step."""
    folder = tmp_path_factory.mktemp("odd")
    write_shards(folder, train=69, validate=31, shards=3)
    return replace(
        tiny,
        train=(str(folder / "train*.tfrecord"),),
        validate=(str(folder / "validate*.tfrecord"),),
        batch_size=70,
        epochs=4,
    )


def test_videos(odd: Options, tmp_path: Path) -> None:
    options = replace(odd, schedule="soft:2")
    youtube8m.run(options, tmp_path / "one")
    code, errors = run_two(options, tmp_path / "two")
    assert code == 0, errors
    assert_equal_results(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_fails(odd: Options, tmp_path: Path, rank: int) -> None:
    """The other one stops too, instead of waiting for a gradient that never comes, and nothing is lost.

    The files are of 40, 2 and 2 videos: one process has those of one file and its half of another.
    """
    write_shards(tmp_path / "large", train=40, validate=1, shards=1)
    write_shards(tmp_path / "small", train=4, validate=1, shards=2, seed=1)
    files = tuple(str(tmp_path / name / "train*.tfrecord") for name in ("large", "small"))
    options = replace(odd, train=files, batch_size=88, schedule="soft:2")
    code, errors = run_two(options, tmp_path / "two", before=FAILING.format(rank=rank), timeout=90)
    assert code != 0
    assert f"ValueError: the fan of process {rank} has stopped" in errors
    # Lightning looks after the second process every five seconds, and may end the first one before it says so.
    assert f"Process {1 - rank} stopped because another one of the 2 did" in errors or code == -signal.SIGKILL
    checkpoint = torch.load(tmp_path / "two" / "checkpoints" / "train.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    code, errors = run_two(options, tmp_path / "two", "--resume")
    assert code == 0, errors
    youtube8m.run(options, tmp_path / "one")
    assert_equal_results(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_fewer_videos_than_processes(tiny: Options, tmp_path: Path) -> None:
    """A file with nothing in it and one with a single video: the second process has none, to train on or to measure."""
    write_shards(tmp_path / "few", train=1, validate=1, shards=1)
    (tmp_path / "few" / "train01.tfrecord").touch()
    few = (str(tmp_path / "few" / "train*.tfrecord"),), (str(tmp_path / "few" / "validate*.tfrecord"),)
    options = replace(tiny, train=few[0], validate=few[1], schedule="soft:1")
    youtube8m.run(options, tmp_path / "one")
    code, errors = run_two(options, tmp_path / "two")
    assert code == 0, errors
    assert_equal_results(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_text(talk: LanguageOptions, tmp_path: Path) -> None:
    options = replace(talk, dropout=0.0, batch_size=4, epochs=2, finetune_epochs=1)
    language_model.run(options, tmp_path / "one")
    code, errors = run_two(options, tmp_path / "two")
    assert code == 0, errors
    assert_equal_results(tmp_path / "one", tmp_path / "two")
    # One of the two writes.
    assert "Traceback" not in errors
    assert [folder.name for folder in (tmp_path / "two" / "logs" / "train" / "csv").iterdir()] == ["version_0"]


@pytest.mark.slow
def test_killed_and_resumed(talk: LanguageOptions, tmp_path: Path) -> None:
    """Each process goes on with its own noise, streams and carried states."""
    options = replace(talk, batch_size=4, epochs=3, finetune_epochs=1, method="neuron-selection", checkpoint_steps=5)
    code, errors = run_two(options, tmp_path / "whole")
    assert code == 0, errors
    checkpoint = tmp_path / "run" / "checkpoints" / "train.ckpt"
    for _ in range(2):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = start_two(options, tmp_path / "run", "--resume")
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    code, errors = run_two(options, tmp_path / "run", "--resume")
    assert code == 0, errors
    for file in ("dense.safetensors", "model.safetensors"):
        one, other = (load_file(tmp_path / folder / file) for folder in ("whole", "run"))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _one_process(rank: int, folder: str, options: Options) -> None:
    meet(rank, folder)
    torch.manual_seed(0)
    model = VideoClassifier(sum(options.features.values()), options.classes, options.hidden)
    tagger = Tagger(model, options)
    tagger.log = lambda *_, **__: None  # type: ignore[method-assign]
    for epoch, skipped in ((0, 0), (0, 1)):  # the whole epoch, and what follows its first step
        videos = Videos(options)
        videos.start(epoch, skipped)
        seen: list[str] = []
        steps, gradient = 0, torch.zeros(options.classes)
        for share in videos.train_dataloader():
            seen += share.batch.ids if share.batch else []
            steps += 1
            model.zero_grad()
            tagger.training_step(share, 0).backward()
            gradient = model.output.bias.grad / 2
            torch.distributed.all_reduce(gradient)
        shares: list[Any] = [None, None]
        torch.distributed.all_gather_object(shares, (seen, steps, share.batch is None))
        if not skipped:
            every = sorted(shares[0][0] + shares[1][0])
            assert len(every) == len(set(every)) == 69
            # The second process has nothing left for the last step, and takes part in it.
            assert [found[1:] for found in shares] == [(2, False), (2, True)]
            whole = gradient
        else:
            assert [found[1:] for found in shares] == [(1, False), (1, True)]
            assert torch.equal(gradient, whole)
    # A gradient of the one video of that step, computed by itself.
    if rank == 0:
        assert share.videos == 1
        model.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        logits = model(share.batch.frames, share.batch.lengths)
        loss(logits, share.batch.labels.float(), reduction="sum").backward()
        torch.testing.assert_close(gradient, model.output.bias.grad)


def test_each_record_counts_once_where_shares_differ(odd: Options, tmp_path: Path) -> None:
    in_two_processes(_one_process, str(tmp_path), replace(odd, batch_size=68))


@pytest.mark.slow
def test_a_folder_in_use_stops_all_processes(odd: Options, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "thesis.txt").write_text("precious")
    code, errors = run_two(odd, tmp_path / "two")
    assert code != 0
    # The first process says why, once; the other one only leaves.
    assert "new or empty folder" in errors
    assert "[rank1]" not in errors


def test_strategies_that_split_the_model(tiny: Options, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Give ddp"):
        youtube8m.run(replace(tiny, strategy="fsdp"), tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"), RecipeError),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), RecipeError),
        (RuntimeError("out of memory"), RuntimeError),
    ],
    ids=str,
)
def test_an_error_of_another_process(
    tiny: Options, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, expected: type[Exception]
) -> None:
    monkeypatch.setattr(processes, "processes", lambda: 2)
    monkeypatch.setattr(processes, "_leave", lambda: None)
    with pytest.raises(expected) as caught, processes.launch(tiny):
        raise error
    assert ("another one of the 2 did" in str(caught.value)) is (expected is RecipeError)


def test_batches_that_cannot_be_dealt_out(tiny: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "processes", lambda: 3)
    with pytest.raises(RecipeError, match="multiple of 3"):
        Videos(tiny)
