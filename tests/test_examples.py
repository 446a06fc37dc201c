"""The examples, one for each framework, on fewer sequences."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_prune(
    framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(framework)
    monkeypatch.chdir(tmp_path)
    example(f"prune_{framework}").main(count=256, epochs=1)
    said = capsys.readouterr().out
    assert "3 of 3 recurrent layers can be pruned: 112 units" in said
    assert re.search(r"whole model +112 → 56 ", said)
    assert {path.name for path in Path("small").iterdir()} == {"model.safetensors", "plan.json", "report.html"}
    found = dict(re.findall(r"^(dense|pruned|fine-tuned) \D*([\d.]+)", said, re.MULTILINE))
    assert all(0.4 < float(value) <= 1 for value in found.values())
    assert set(found) == {"dense", "pruned", "fine-tuned"}


def test_both_are_of_the_same_length() -> None:
    lines = [len((EXAMPLES / f"prune_{name}.py").read_text().splitlines()) for name in ("torch", "keras")]
    assert abs(lines[0] - lines[1]) <= 10
