"""The wheel in a fresh environment, once for each extra that people install."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.docs.test_pages import ROOT, program

KERAS = """
import keras, numpy as np, reprune
model = keras.Sequential([keras.Input((9, 4)), keras.layers.LSTM(8), keras.layers.Dense(2)])
batches = [np.random.rand(8, 9, 4).astype("float32") for _ in range(8)]
reprune.prune(model, batches, ratio=0.5).save("small")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "-q", "--wheel", "-o", folder, ROOT], check=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["torch", "keras"])
def test_a_fresh_environment_runs_the_readme(extra: str, wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[{extra}]"]
    # A source tree on the path would pass for the installed package.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(install, env=environment, check=True)
    code = program((ROOT / "README.md").read_text(encoding="utf-8")) if extra == "torch" else KERAS
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in (tmp_path / "small").iterdir()} >= {"model.safetensors", "plan.json", "report.html"}
