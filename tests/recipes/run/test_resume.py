"""A run that was interrupted ends as one that was not."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from reprune.core.errors import RecipeError
from reprune.recipes.run import procedure, torch_recipe
from reprune.recipes.run.checkpoints import AtomicCheckpointIO
from reprune.recipes.run.interrupts import InterruptedRunError
from reprune.recipes.run.options import Options
from reprune.recipes.video import recipe as youtube8m
from reprune.recipes.video.tagger import Tagger

STEPS = 6  # of an epoch: 90 videos in batches of 16


class CrashError(Exception):
    pass


def crash_after(monkeypatch: pytest.MonkeyPatch, steps: int, act: Any) -> None:
    """Let the training step after `steps` others call `act` first."""
    original, seen = Tagger.training_step, []

    def step(self: Tagger, batch: Any, batch_idx: int) -> Any:
        seen.append(batch_idx)
        if len(seen) == steps + 1:
            act()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Tagger, "training_step", step)


def raise_crash() -> None:
    raise CrashError


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {f"dense.{name}": tensor for name, tensor in load_file(folder / "dense.safetensors").items()}
    return {**found, **load_file(folder / "model.safetensors")}


def assert_same(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert json.loads((first / "plan.json").read_text()) == json.loads((second / "plan.json").read_text())


@pytest.fixture(scope="session", params=["after", "soft:4"])
def undisturbed(request: pytest.FixtureRequest, tiny: Options, tmp_path_factory: pytest.TempPathFactory) -> Any:
    options = replace(tiny, schedule=request.param)
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    youtube8m.run(options, folder)
    return options, folder


@pytest.mark.parametrize("steps", [0, 3, 6, 11, 14])
def test_crash_at_any_step(steps: int, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, folder = undisturbed
    with monkeypatch.context() as patch:
        crash_after(patch, steps, raise_crash)
        with pytest.raises(CrashError):
            youtube8m.run(options, tmp_path / "run")
    youtube8m.run(options, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", folder)


def test_repeated_crashes(undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, folder = undisturbed
    for _ in range(3):
        with monkeypatch.context() as patch:
            crash_after(patch, 4, raise_crash)
            with pytest.raises(CrashError):
                youtube8m.run(options, tmp_path / "run", resume=True)
    youtube8m.run(options, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", folder)


@pytest.mark.parametrize("part", ["_prune", "_finetune", "_evaluate"])
def test_crash_between_parts(part: str, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, folder = undisturbed
    with monkeypatch.context() as patch:
        patch.setattr(procedure, part, lambda *_: raise_crash())
        with pytest.raises(CrashError):
            youtube8m.run(options, tmp_path / "run")
    youtube8m.run(options, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", folder)


@pytest.mark.parametrize("after", [3, 6])
def test_ctrl_c_saves_the_step(after: int, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, folder = undisturbed
    with monkeypatch.context() as patch:
        crash_after(patch, after, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(InterruptedRunError, match=f"after {after + 1} steps"):
            youtube8m.run(replace(options, checkpoint_steps=1000), tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = []
    with monkeypatch.context() as patch:
        crash_after(patch, 0, lambda: resumed.append(True))
        youtube8m.run(options, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", folder)


def test_ctrl_c_twice_stops_at_once(tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    crash_after(monkeypatch, 1, twice)
    with pytest.raises((KeyboardInterrupt, SystemExit, InterruptedRunError)):
        youtube8m.run(tiny, tmp_path / "run")
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_sigkill_while_a_checkpoint_is_written(undisturbed: Any, tmp_path: Path) -> None:
    options, folder = undisturbed
    script = textwrap.dedent("""
        import os, signal, sys, json
        from pathlib import Path
        import torch
        from reprune.recipes.run import checkpoints
        from reprune.recipes.video import recipe as youtube8m
        from reprune.recipes.run.options import Options
        save, count = torch.save, 0
        def dying(checkpoint, path):
            global count
            count += 1
            if count < 4:
                return save(checkpoint, path)
            Path(path).write_bytes(b"half a checkpoint")
            os.kill(os.getpid(), signal.SIGKILL)
        torch.save = dying
        youtube8m.run(Options.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]))
    """)
    arguments = [sys.executable, "-c", script, json.dumps(options.to_dict()), str(tmp_path / "run")]
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == -signal.SIGKILL
    youtube8m.run(options, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", folder)


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def full(checkpoint: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RecipeError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]


@pytest.mark.parametrize("error", [SafetensorError("No space left on device"), OSError(28, "No space left on device")])
def test_full_disk_after_training(
    error: Exception, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, folder = undisturbed

    def full(model: Any, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch_recipe, "save_model", full)
        with pytest.raises(RecipeError, match=r"No space left.* Make room"):
            youtube8m.run(options, tmp_path / "run")
    assert not (tmp_path / "run" / "dense.safetensors").exists()
    steps: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Tagger, "training_step", lambda self, batch, batch_idx: steps.append(batch_idx))
        patch.setattr(procedure, "_finetune", lambda *_: raise_crash())
        with pytest.raises(CrashError):
            youtube8m.run(options, tmp_path / "run", resume=True)
    assert not steps
    youtube8m.run(options, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", folder)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.fixture(scope="module")
def interrupted(tiny: Options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        crash_after(patch, 4, raise_crash)
        with pytest.raises(CrashError):
            youtube8m.run(tiny, folder)
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"nonsense",
        lambda data: bytes(len(data)),
        lambda data: data[: len(data) // 2],
        lambda data: flipped(data, len(data) // 2),  # a bit of a weight, which PyTorch would read
        lambda data: saved([1, 2]),
        lambda data: saved({"state_dict": {}}),
    ],
)
def test_damaged_checkpoint(damage: Any, interrupted: Path, tiny: Options, tmp_path: Path) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "train.ckpt"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(RecipeError, match=r"train.ckpt cannot be read: .*Delete it"):
        youtube8m.run(tiny, tmp_path / "run", resume=True)


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_damaged_state(interrupted: Path, tiny: Options, tmp_path: Path) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    (tmp_path / "run" / "state.json").write_text("[1]")
    with pytest.raises(RecipeError, match=r"state.json does not say what is done"):
        youtube8m.run(tiny, tmp_path / "run", resume=True)


def test_finished_run_is_not_repeated(undisturbed: Any) -> None:
    options, folder = undisturbed
    before = (folder / "model.safetensors").stat().st_mtime_ns
    said: list[str] = []
    summary = youtube8m.run(options, folder, resume=True, say=said.append)
    assert summary == json.loads((folder / "summary.json").read_text())
    assert said == ["This run is finished."]
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
