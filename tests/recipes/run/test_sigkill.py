"""The commands that train, killed at random moments or on a full disk, end as they would have ended undisturbed."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reprune.cli.app import app
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.run.options import Options, RunOptions

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills and forks as POSIX does")

KILLS = 6
BY_ITSELF = 2  # of them, while it writes a checkpoint


@pytest.fixture(scope="module")
def server() -> Any:
    """Forks processes that have imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "reprune.cli.app",
            "reprune.recipes.video.torch_recipe",
            "reprune.recipes.language.recipe",
            "array_api_compat.torch",
        ]
    )
    warm = context.Process(target=int)
    warm.start()
    warm.join()
    return context


def arguments(options: RunOptions, out: Path) -> list[str]:
    """The command line of some options."""
    words = ["train", options.recipe.lower().replace("youtube-", "youtube"), "--out", str(out), "--resume"]
    for name, value in options.to_dict().items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, dict):
            words += [flag, ",".join(f"{key}:{size}" for key, size in value.items())]
        elif value is not None:
            words += [word for part in (value if isinstance(value, list) else [value]) for word in (flag, str(part))]
    return words


def command(words: list[str], log: str, save: int | None = None, limit: int | None = None) -> None:
    """Run `reprune` in this process.

    Args:
        words: Its arguments.
        log: Takes what it prints.
        save: The checkpoint that is being written, counted from 0, when the process kills itself.
        limit: The most bytes that a checkpoint may have: what is beyond fails, as on a full disk.
    """
    with Path(log).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    # TensorBoard's own switch: its writer would import all of TensorFlow, where it is installed, to open a local file.
    sys.modules["tensorboard.compat.notf"] = ModuleType("tensorboard.compat.notf")
    if save is not None:
        die_while_saving(save)
    if limit is not None:
        fill_disk(limit)
    app(words)


def die_while_saving(number: int) -> None:
    original, seen = torch.save, []

    def save(checkpoint: Any, path: Path) -> None:
        if len(seen) == number:
            whole = io.BytesIO()
            original(checkpoint, whole)
            Path(path).write_bytes(whole.getvalue()[: random.Random(number).randrange(whole.tell())])
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(path)
        original(checkpoint, path)

    torch.save = save


def fill_disk(limit: int) -> None:
    original = torch.save
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def save(checkpoint: Any, path: Path) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            original(checkpoint, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    torch.save = save


def run(server: Any, *given: Any, kill_after: float | None = None, **more: Any) -> int:
    """Run `command` in a process, perhaps until it is killed; its exit code."""
    process = server.Process(target=command, args=given, kwargs=more)
    process.start()
    process.join(kill_after)
    process.kill()
    process.join()
    code: int = process.exitcode
    return code


def result(folder: Path) -> tuple[dict[str, torch.Tensor], Any, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("dense", "pruned"):
        del summary[name]["latency_ms"]
    weights = {
        f"{file}: {name}": tensor
        for file in ("dense.safetensors", "model.safetensors")
        for name, tensor in load_file(folder / file).items()
    }
    return weights, json.loads((folder / "plan.json").read_text()), summary


def assert_same_results(first: Path, second: Path) -> None:
    (weights, *texts), (others, *other_texts) = result(first), result(second)
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name
    assert texts == other_texts


@pytest.mark.parametrize(
    ("recipe", "method", "schedule"),
    [
        ("language-model", "iss-gm", "gradual:3"),
        pytest.param("language-model", "neuron-selection", "after", marks=pytest.mark.slow),
        pytest.param("youtube8m", "iss-gm", "gradual:3", marks=pytest.mark.slow),
        pytest.param("youtube8m", "neuron-selection", "after", marks=pytest.mark.slow),
    ],
)
def test_killed_at_random(
    recipe: str, method: str, schedule: str, tiny: Options, talk: LanguageOptions, tmp_path: Path, server: Any
) -> None:
    small: RunOptions = tiny if recipe == "youtube8m" else replace(talk, epochs=3, finetune_epochs=1)
    options = replace(small, method=method, schedule=schedule)
    log = str(tmp_path / "log")
    start = time.monotonic()
    assert run(server, arguments(options, tmp_path / "whole"), log) == 0, Path(log).read_text()
    seconds = time.monotonic() - start
    chance = random.Random(f"{recipe} {method} {schedule}")
    kills, runs = 0, 0
    while kills < KILLS:
        folder = tmp_path / f"run{runs}"
        runs += 1
        code = -signal.SIGKILL
        while code != 0:
            assert code == -signal.SIGKILL, Path(log).read_text()
            moment: dict[str, Any] = {}
            if kills < BY_ITSELF:
                moment["save"] = chance.randrange(4)
            elif kills < KILLS:
                moment["kill_after"] = chance.uniform(0.05, 0.6) * seconds
            code = run(server, arguments(options, folder), log, **moment)
            kills += code == -signal.SIGKILL
        assert_same_results(folder, tmp_path / "whole")


def test_no_room_for_a_checkpoint(tiny: Options, tmp_path: Path, server: Any) -> None:
    """Reported before a step, and again, while a whole checkpoint stays, before a second step; then all goes on."""
    log, words = tmp_path / "log", arguments(tiny, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "train.ckpt"
    assert run(server, arguments(tiny, tmp_path / "whole"), str(log)) == 0
    log.write_text("")
    assert run(server, words, str(log), limit=4096) == 1
    assert "train.ckpt cannot be written" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not checkpoint.exists()
    # The optimiser's moments come with the first step, and make it larger.
    assert run(server, words, str(log), save=1) == -signal.SIGKILL
    started = checkpoint.stat().st_size
    assert run(server, words, str(log), limit=started + 1024) == 1
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 0
    assert run(server, words, str(log)) == 0
    assert_same_results(tmp_path / "run", tmp_path / "whole")
