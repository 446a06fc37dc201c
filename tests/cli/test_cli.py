"""The command line: help, exit codes, messages, and that it starts without a framework."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import nn
from typer.testing import CliRunner

from reprune.cli.app import app
from reprune.recipes.video.generated import CLASSES, write_shards

COMMANDS = [
    ["demo"],
    ["inspect"],
    ["prune"],
    ["compare"],
    ["export"],
    ["bench"],
    ["train", "youtube8m"],
    ["train", "language-model"],
    ["evaluate", "youtube8m"],
    ["evaluate", "language-model"],
]
MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])

def build():
    return Net()

def batches():
    return [torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]

built = Net()
listed = batches()

def score(model):
    return float(model(listed[0]).detach().sum())
"""
runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder."""
    (tmp_path / "cli_shop.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "cli_shop", raising=False)
    return "cli_shop"


def test_input_units_need_a_method_that_removes_them(tmp_path: Path) -> None:
    texts = [part for name in ("train", "valid", "test") for part in (f"--{name}", "words.txt")]
    result = runner.invoke(app, ["train", "language-model", *texts, "--out", str(tmp_path / "run"), "--inputs"])
    assert result.exit_code == 1
    assert "Give --method neuron-selection" in result.output


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(command: list[str]) -> None:
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert f"Example: reprune {' '.join(command)}" in " ".join(result.output.split())


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"]])
def test_help_lists_commands(command: list[str]) -> None:
    assert "Usage" in runner.invoke(app, [*command, "--help"]).output


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["demo"],
        ["train", "youtube8m", "--out", "x"],
        ["prune", "--ratio", "half"],
        ["evaluate", "youtube8m", "--checkpoint", "nowhere", "--data", "x"],
    ],
)
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    assert runner.invoke(app, arguments).exit_code == 2


def test_help_imports_no_framework() -> None:
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from reprune.cli.app import app\n"
        "assert CliRunner().invoke(app, ['train', 'youtube8m', '--help']).exit_code == 0\n"
        "found = {'torch', 'keras', 'tensorflow', 'lightning', 'matplotlib', 'google.protobuf'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_inspect(shop: str) -> None:
    result = runner.invoke(app, ["inspect", "--model", f"{shop}:build", "--batches", f"{shop}:batches"])
    assert result.exit_code == 0, result.output
    assert "lstm:l0" in result.output
    assert "head.weight" in result.output


@pytest.mark.parametrize(("model", "batches"), [("build", "batches"), ("Net", "listed"), ("built", "listed")])
def test_prune(shop: str, model: str, batches: str, tmp_path: Path) -> None:
    arguments = ["--model", f"{shop}:{model}", "--batches", f"{shop}:{batches}", "--method", "iss-gm", "--out", "small"]
    result = runner.invoke(app, ["prune", *arguments])
    assert result.exit_code == 0, result.output
    assert "8 → 4" in result.output
    assert {path.name for path in (tmp_path / "small").iterdir()} == {"model.safetensors", "plan.json", "report.html"}


def test_prune_and_distil(shop: str) -> None:
    import cli_shop

    import reprune.torch as verbs

    dense = cli_shop.build()
    save_model(dense, "dense.safetensors")
    given = ["--model", f"{shop}:build", "--weights", "dense.safetensors", "--batches", f"{shop}:listed"]
    far = []
    for steps in ("0", "60"):
        result = runner.invoke(app, ["prune", *given, "--method", "random", "--distill-steps", steps, "--out", steps])
        assert result.exit_code == 0, result.output
        small = verbs.load(cli_shop.build(), steps)
        with torch.no_grad():
            far.append(float((small(cli_shop.listed[0]) - dense(cli_shop.listed[0])).square().mean()))
    assert far[1] < 0.8 * far[0]


def test_prune_uses_the_weights(shop: str, tmp_path: Path) -> None:
    import cli_shop

    dense = cli_shop.build()
    save_model(dense, str(tmp_path / "dense.safetensors"))
    arguments = ["--model", f"{shop}:build", "--weights", "dense.safetensors", "--batches", f"{shop}:batches"]
    result = runner.invoke(app, ["prune", *arguments, "--ratio", "0", "--method", "magnitude", "--out", "same"])
    assert result.exit_code == 0, result.output
    import reprune.torch as verbs

    same = verbs.load(cli_shop.build(), tmp_path / "same")
    x = cli_shop.batches()[0]
    with torch.no_grad():
        torch.testing.assert_close(same(x), dense(x))


def test_errors_are_one_message_and_code_1(shop: str, tmp_path: Path) -> None:
    save_model(nn.Linear(2, 2), str(tmp_path / "other.safetensors"))
    model, batches = ["--model", f"{shop}:build"], ["--batches", f"{shop}:batches", "--out", "small"]
    cases = [
        (["--model", "no_such_module:build", *batches], "there is no module 'no_such_module'"),
        (["--model", "shop/models.py:build", *batches], "named without its ending, shop.models:build"),
        (["--model", f"{shop}:nothing", *batches], "has no 'nothing'"),
        (["--model", f"{shop}:builder", *batches], "Did you mean 'build'?"),
        (["--model", "nonsense", *batches], "not of the form package.module:name"),
        ([*model, *batches, "--ratio", "1.5"], "not a fraction"),
        ([*model, *batches, "--method", "magic"], "not a known method"),
        ([*model, *batches, "--weights", "other.safetensors"], "does not hold the weights of Net"),
    ]
    for arguments, message in cases:
        result = runner.invoke(app, ["prune", *arguments])
        assert result.exit_code == 1, (arguments, result.output)
        assert result.stderr.startswith("Error: ")
        assert message in " ".join(result.stderr.split())
        assert "Traceback" not in result.output


def test_train_evaluate_and_resume(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", train=48, validate=16, shards=2)
    train = [
        *["train", "youtube8m", "--train", str(tmp_path / "data" / "train*"), "--hidden", "8", "--epochs", "1"],
        *["--validate", str(tmp_path / "data" / "validate*"), "--features", "rgb:32,audio:16", "--batch-size", "16"],
        *["--classes", str(CLASSES), "--no-progress", "--accelerator", "cpu", "--out", str(tmp_path / "run")],
    ]
    first = runner.invoke(app, train)
    assert first.exit_code == 0, first.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert f"{summary['pruned']['gap']:.4f}" in first.output

    again = runner.invoke(app, train)
    assert again.exit_code == 1
    assert "--resume" in again.stderr
    assert runner.invoke(app, [*train, "--resume"]).exit_code == 0
    other = runner.invoke(app, [*train, "--resume", "--ratio", "0.25"])
    assert other.exit_code == 1
    assert "--ratio: 0.5 before, 0.25 now" in other.stderr

    data = ["--data", str(tmp_path / "data" / "validate*"), "--accelerator", "cpu"]
    found = runner.invoke(app, ["evaluate", "youtube8m", "--checkpoint", str(tmp_path / "run"), *data])
    assert found.exit_code == 0, found.output
    assert f"{summary['pruned']['gap']:.4f}" in found.output
    empty = runner.invoke(app, ["evaluate", "youtube8m", "--checkpoint", str(tmp_path / "data"), *data])
    assert (empty.exit_code, "not the folder of a run" in empty.stderr) == (1, True)


def test_wrong_features(tmp_path: Path) -> None:
    arguments = ["--train", "x", "--validate", "x", "--out", str(tmp_path), "--features", "rgb"]
    result = runner.invoke(app, ["train", "youtube8m", *arguments])
    assert (result.exit_code, "is not NAME:SIZE" in result.stderr) == (1, True)


def test_compare_prints_the_grid_it_measured(shop: str, tmp_path: Path) -> None:
    names = ["--model", f"{shop}:built", "--data", f"{shop}:batches", "--evaluate", f"{shop}:score"]
    grid = ["--methods", "magnitude,random", "--ratios", "0.25,0.5", "--scope", "all", "--out", "grid"]
    result = runner.invoke(app, ["compare", *names, *grid])
    assert result.exit_code == 0, result.output
    cells = json.loads((tmp_path / "grid" / "comparison.json").read_text())
    assert len(list((tmp_path / "grid" / "cells").iterdir())) == 5
    assert result.output.count("| magnitude |") == result.output.count("| random |") == 2  # metric and divergence
    assert cells
    wrong = runner.invoke(app, ["compare", *names, "--ratios", "half", "--out", "other"])
    assert wrong.exit_code == 1
    assert "give numbers separated by commas" in wrong.output


def test_compare_interrupted_goes_on(shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cli_shop

    measured = []

    def score(model: object) -> float:
        measured.append(model)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return 0.5

    monkeypatch.setattr(cli_shop, "score", score)
    names = ["--model", f"{shop}:built", "--data", f"{shop}:batches", "--evaluate", f"{shop}:score"]
    grid = ["compare", *names, "--methods", "magnitude,random", "--ratios", "0.5", "--out", "grid"]
    result = runner.invoke(app, grid)
    assert (result.exit_code, "the same command goes on" in result.output) == (130, True)
    assert runner.invoke(app, grid).exit_code == 0
    assert len(measured) == 4
