"""What a command does when it cannot do its work: it says so in one line, before the work where that can be known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reprune.cli.app import app
from reprune.recipes.video.generated import CLASSES, write_shards

fcntl = pytest.importorskip("fcntl", reason="locks and limits of Unix")
resource = pytest.importorskip("resource")

MODULE = """
import torch
from torch import nn

worked = []

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])

def build():
    worked.append("build")
    return Net()

def batches():
    return [torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]

def example():
    return torch.zeros(1, 6, 3)

def score(model):
    return 0.5

def sized(units):
    return Net()

def broken():
    raise LookupError("no such\\nweights")

def stopped():
    raise KeyboardInterrupt

number = 3
"""
runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
MODEL = ["--model", "trust_shop:build"]
BATCHES = ["--batches", "trust_shop:batches"]
COMPARE = ["compare", *MODEL, "--data", "trust_shop:batches", "--evaluate", "trust_shop:score"]
EXPORT = ["export", *MODEL, "--example", "trust_shop:example"]
BENCH = ["bench", "trust_shop:build", "trust_shop:build", "--repeats", "1", "--runtime", "torch", "--frames", "6"]
VIDEO = ["train", "youtube8m", "--train", "data/train*", "--validate", "data/validate*", "--hidden", "8"]
VIDEO += [
    "--features",
    "rgb:32,audio:16",
    "--epochs",
    "1",
    "--finetune-epochs",
    "0",
    "--batch-size",
    "16",
    "--no-progress",
]
WRITES = {
    "demo": ["demo", "--out"],
    "prune": ["prune", *MODEL, *BATCHES, "--out"],
    "latency table": ["prune", *MODEL, *BATCHES, "--out", "small", "--of", "latency", "--latency-table"],
    "compare": [*COMPARE, "--out"],
    "export": [*EXPORT, "--out"],
    "bench json": [*BENCH, "--json"],
    "bench plot": [*BENCH, "--plot"],
    "video": [*VIDEO, "--classes", str(CLASSES), "--out"],
}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's in the current folder, which notes when it builds a model."""
    (tmp_path / "trust_shop.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trust_shop", raising=False)
    import trust_shop

    return trust_shop


def refused(arguments: list[str], code: int = 1) -> str:
    """The one line that a command ends with."""
    result = runner.invoke(app, arguments)
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in result.output
    return lines[0]


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Inside, no file can become longer than this, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("command", WRITES)
def test_places_that_cannot_be_written_are_told_before_the_work(shop: Any, command: str) -> None:
    Path("file").touch()
    if command == "video":
        write_shards(Path("data"), train=4, validate=2, shards=1)
    before = sorted(Path().rglob("*"))
    place = "file/out.png" if "bench" in command else "file/out.onnx" if command == "export" else "file/out"
    assert f"{place} cannot be written" in refused([*WRITES[command], place])
    assert shop.worked == []
    # Nor is anything left of the attempt.
    assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in str(path)] == before


@pytest.mark.parametrize(
    "command",
    [["prune", *MODEL, *BATCHES, "--out", "out"], [*COMPARE, "--ratios", "0.5", "--out", "out"],
     [*EXPORT, "--out", "out.onnx"], [*BENCH, "--json", "out.json"]],
    ids=["prune", "compare", "export", "bench"],
)  # fmt: skip
def test_a_full_disk(shop: Any, command: list[str]) -> None:
    with room_for(100):
        line = refused(command)
    assert "ile too large" in line or "cannot be written" in line
    left = [path for path in Path().rglob("out*") if path.is_file()]
    assert all(path.stat().st_size <= 100 for path in left)


def test_a_full_disk_does_not_abort_the_process(shop: Any) -> None:
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, -1)); from reprune.cli.app import app; app()"
    )
    run = subprocess.run(
        [sys.executable, "-c", limited, *EXPORT, "--out", "out.pt2"], capture_output=True, text=True, cwd=Path.cwd()
    )
    assert run.returncode == 1, run.stderr
    assert run.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in run.stderr
    assert not Path("out.pt2").exists()


def test_output_that_cannot_be_written(shop: Any) -> None:
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "reprune", "inspect", *MODEL, "--example", "trust_shop:batches"],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1] == "Error: No space left on device."


def test_unexpected_errors_are_one_line_too(shop: Any) -> None:
    command = ["inspect", "--model", "trust_shop:broken", "--example", "trust_shop:batches"]
    assert refused(command) == "Error: LookupError: no such weights (--debug shows where)"
    for debug in (["--debug", *command], [*command, "--debug"]):
        result = runner.invoke(app, debug)
        assert isinstance(result.exception, LookupError)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["inspect", "--model", "trust_shop:sized", "--example", "trust_shop:batches"],
            1,
            "sized(units) does not take",
        ),
        (["prune", *MODEL, "--batches", "trust_shop:sized", "--out", "x"], 1, "give a function without arguments"),
        ([*COMPARE[:-1], "trust_shop:number"], 1, "--evaluate trust_shop:number is a int: give a function of a model"),
        ([*COMPARE, "--finetune", "trust_shop:score"], 1, "give a function of a model and a number of steps"),
        ([*COMPARE, "--loss", "trust_shop:build"], 1, "--loss trust_shop:build()"),
        ([*EXPORT, "--out", "x.onnx", "--evaluate", "trust_shop:build"], 1, "give a function of a runner"),
        (["prune", *MODEL, *BATCHES, "--out", "x", "--method", "magic"], 1, "'magic'"),
        (["prune", *MODEL, *BATCHES, "--out", "x", "--ratio", "2"], 1, "not a fraction"),
        (["prune", *MODEL, *BATCHES], 2, "Missing option '--out'. "),
        (["prune", *MODEL, *BATCHES, "--ratio", "half"], 2, "--ratio"),
        (["fly"], 2, "No such command 'fly'"),
    ],
)
def test_what_is_wrong_with_the_words(shop: Any, arguments: list[str], code: int, message: str) -> None:
    assert message in refused(arguments, code)
    assert not Path("x").exists()


@pytest.mark.parametrize(
    "change", [["--precision", "17"], ["--accelerator", "zpu"], ["--devices", "none"], ["--classes", "2"]]
)
def test_a_start_that_fails_leaves_nothing(shop: Any, change: list[str]) -> None:
    write_shards(Path("data"), train=16, validate=8, shards=1)
    command = [*VIDEO, "--classes", str(CLASSES), "--accelerator", "cpu", "--out", "run"]
    result = runner.invoke(app, [*command, *change])
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert not Path("run").exists()


def test_the_corrected_command_runs(shop: Any) -> None:
    write_shards(Path("data"), train=16, validate=8, shards=1)
    command = [*VIDEO, "--accelerator", "cpu", "--out", "run"]
    # As a start leaves it that was killed before it had a checkpoint.
    Path("run/logs").mkdir(parents=True)
    Path("run/options.json").write_text(json.dumps({"epochs": 7}))
    result = runner.invoke(app, [*command, "--classes", str(CLASSES)])
    assert result.exit_code == 0, result.output
    again = runner.invoke(app, [*command, "--classes", "2"])
    assert "holds a run already" in again.stderr


@pytest.mark.parametrize("command", ["demo", "prune", "compare", "video"])
def test_a_second_process_is_told(shop: Any, command: str) -> None:
    write_shards(Path("data"), train=4, validate=2, shards=1)
    Path("out").mkdir()
    first = os.open("out", os.O_RDONLY)
    fcntl.flock(first, fcntl.LOCK_EX)
    try:
        assert "another process is writing there" in refused([*WRITES[command], "out"])
    finally:
        os.close(first)
    assert shop.worked == []
    assert list(Path("out").iterdir()) == []


def test_ctrl_c(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (
        ["inspect", "--model", "trust_shop:stopped", "--example", "trust_shop:batches"],
        ["prune", "--model", "trust_shop:stopped", *BATCHES, "--out", "x"],
        ["export", "--model", "trust_shop:stopped", "--example", "trust_shop:example", "--out", "x.onnx"],
        ["bench", "trust_shop:stopped", "trust_shop:build"],
    ):
        assert refused(command, 130).startswith("Stopped: nothing is kept.")
    command = ["compare", "--model", "trust_shop:stopped", *COMPARE[3:], "--out", "x"]
    assert refused(command, 130).startswith("Stopped: what was measured is kept in x, the same command")
    assert not Path("x").exists()


@pytest.mark.parametrize("module", ["numpy", "typer", "torch"])
def test_ctrl_c_while_packages_are_imported(shop: Any, module: str) -> None:
    # The first import of the package sends what Ctrl-C sends.
    stopping = f"""
import os, signal, sys
from importlib.abc import MetaPathFinder

class Stop(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Stop())
from reprune_command import main
main()
"""
    command = ["inspect", *MODEL, "--example", "trust_shop:batches"]
    run = subprocess.run([sys.executable, "-c", stopping, *command], capture_output=True, text=True)
    assert run.returncode == 130, run.stderr
    assert run.stderr == "Stopped: nothing is kept. The same command starts anew.\n"


def test_ctrl_c_while_distilling_keeps_the_pruned_model(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import reprune

    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reprune, "distill", stop)
    line = refused(["prune", *MODEL, *BATCHES, "--out", "small", "--distill-steps", "9"], 130)
    assert "small keeps the pruned model" in line
    reprune.load(shop.build(), "small")


@pytest.mark.parametrize(("part", "kept"), [("baseline", True), ("generate", False)])
def test_ctrl_c_in_the_demo(shop: Any, monkeypatch: pytest.MonkeyPatch, part: str, kept: bool) -> None:
    from reprune.recipes.video import demo

    def stop(*args: Any, **options: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:  # As Lightning does it.
            sys.exit(1)

    monkeypatch.setattr(demo, "write_shards", (lambda *a, **k: None) if part == "baseline" else stop)
    monkeypatch.setattr(demo, "train_baseline", stop)
    line = refused(["demo", "--out", "out"], 130)
    assert ("the same command goes on" in line, Path("out").exists()) == (kept, kept)
