"""What Python can, the command line can; and what it says to programs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import reprune
from reprune.cli.app import app
from tests.cli.test_cli import MODULE

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
MORE = """
pairs = [(x, torch.tensor([0, 1, 0, 1])) for x in listed]

def labels(batch):
    return batch[1]

def forward(model, batch):
    return model(batch[0])

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "more_shop.py").write_text(MODULE + MORE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "more_shop", raising=False)
    return "more_shop"


def run(*words: str, code: int = 0) -> str:
    done = runner.invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done.output


def test_methods_that_look_at_labels_or_a_loss(shop: str) -> None:
    """The command decides as Python does with the same functions."""
    import more_shop

    for method, option in (("fsdp", "labels"), ("taylor", "loss")):
        words = ["prune", "--model", f"{shop}:built", "--batches", f"{shop}:pairs", "--forward", f"{shop}:forward"]
        run(*words, "--method", method, f"--{option}", f"{shop}:{option}", "--out", method)
        given = {option: getattr(more_shop, option), "forward": more_shop.forward}
        wanted = reprune.plan(more_shop.built, more_shop.pairs, method=method, **given)
        assert reprune.Plan.from_json((Path(method) / "plan.json").read_bytes()).kept == wanted.kept
        said = run(*words, "--method", method, "--out", "other", code=1)
        assert f"give --{option} MODULE:NAME" in said


def test_json_and_quiet(shop: str) -> None:
    found = json.loads(run("inspect", "--model", f"{shop}:build", "--batches", f"{shop}:batches", "--json"))
    assert found["lstm:l0"]["units"] == 8
    assert found["lstm:l0"]["pinned"] is None
    assert "head.weight" in found["lstm:l0"]["read_by"]
    words = ["prune", "--model", f"{shop}:build", "--batches", f"{shop}:batches", "--method", "magnitude"]
    assert json.loads(run(*words, "--out", "a", "--json"))["layers"] == {"lstm:l0": [8, 4]}
    assert run(*words, "--out", "b", "--quiet") == ""


def test_layers_by_the_name_of_their_module(shop: str) -> None:
    words = ["prune", "--model", f"{shop}:build", "--batches", f"{shop}:batches", "--method", "magnitude", "--out", "a"]
    assert "Did you mean 'lstm'?" in run(*words, "--include", "lstn", code=1)
    assert "8 → 4" in run(*words, "--include", "lstm")


def test_weights_of_torch_save_are_read_safely(shop: str, tmp_path: Path) -> None:
    import more_shop

    words = ["prune", "--model", f"{shop}:build", "--batches", f"{shop}:batches", "--ratio", "0", "--out", "same"]
    torch.save({"state_dict": more_shop.built.state_dict(), "epoch": 3}, "dense.pt")
    run(*words, "--weights", "dense.pt", "--method", "magnitude")
    same = reprune.load(more_shop.build(), "same")
    torch.testing.assert_close(same(more_shop.listed[0]), more_shop.built(more_shop.listed[0]))
    torch.save(more_shop.built, "whole.pt")  # A pickled model is code, which nobody should run from a file.
    assert "Save the weights: torch.save(" in run(*words, "--weights", "whole.pt", code=1)
    torch.save({"model": {"lstm.weight_ih_l0": torch.zeros(1)}, "epoch": 3}, "part.pt")
    assert "part.pt does not hold the weights" in run(*words, "--weights", "part.pt", code=1)
    torch.save({"epoch": 3}, "none.pt")
    said = run(*words, "--weights", "none.pt", code=1)
    assert "it lacks" in said
    assert len(said.splitlines()) == 1
    Path("dense.npz").write_bytes(b"x")
    assert "no format of weights" in run(*words, "--weights", "dense.npz", code=1)


def test_globs_that_the_shell_wrote_out() -> None:
    from typer.main import get_command

    command = get_command(app).commands["prune"]  # type: ignore[attr-defined]
    words = [
        "--model",
        "m:b",
        "--batches",
        "m:c",
        "--out",
        "o",
        "--exclude",
        "a",
        "b",
        "--ratio",
        "0.3",
        "--include",
        "c",
    ]
    given = command.make_context("prune", list(words)).params
    assert (given["exclude"], given["include"], given["ratio"]) == (["a", "b"], ["c"], 0.3)


@pytest.mark.parametrize("command", [[], ["prune"], ["train", "youtube8m"], ["compare"], ["bench"]], ids=" ".join)
@pytest.mark.parametrize("columns", [40, 80, 120])
def test_help_is_whole_at_every_width(command: list[str], columns: int) -> None:
    narrow = CliRunner(env={"COLUMNS": str(columns), "TERM": "dumb", "NO_COLOR": "1"})
    lines = narrow.invoke(app, [*command, "--help"]).output.splitlines()
    assert max(map(len, lines)) <= columns
    assert not [line for line in lines if re.search(r"\w(…|\.\.\.)", line)]


def test_version_and_module() -> None:
    assert run("--version").strip() == f"reprune {reprune.__version__}"
    done = subprocess.run([sys.executable, "-m", "reprune", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"reprune {reprune.__version__}"
    assert "Did you mean 'prune'?" in run("pruen", code=2)


def test_messages_speak_of_options(shop: str) -> None:
    words = ["prune", "--model", f"{shop}:build", "--method", "magnitude", "--out", "a"]
    batches = ["--batches", f"{shop}:batches"]
    assert "--ratio 1.5 is not a fraction" in run(*words, *batches, "--ratio", "1.5", code=1)
    assert "--exclude 'lstn' matches no layer" in run(*words, *batches, "--exclude", "lstn", code=1)


def test_a_part_of_a_batch_is_said_in_one_line(shop: str) -> None:
    words = ["prune", "--model", f"{shop}:build", "--batches", f"{shop}:pairs", "--method", "magnitude", "--out", "a"]
    said = subprocess.run([sys.executable, "-m", "reprune", *words], capture_output=True, text=True)
    assert said.returncode == 0
    assert said.stderr.startswith("Warning: ")
    assert len(said.stderr.splitlines()) == 1
    assert "--forward MODULE:NAME, a function such as lambda model, batch: model(batch[0])" in said.stderr
    said = subprocess.run([sys.executable, "-m", "reprune", *words, "--quiet"], capture_output=True, text=True)
    assert (said.stdout, said.stderr) == ("", "")
