"""What is wrong with an export's path, options and packages is said before any work is done."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import reprune.torch.export as exporting
from reprune.core.exporting import ExportError, checked_path, chosen_axes
from reprune.torch.export import export


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy of a model is made."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the model was copied first")

    monkeypatch.setattr(exporting, "duplicate", refuse)


def pretend(monkeypatch: pytest.MonkeyPatch, *modules: str, there: bool) -> None:
    for name in modules:
        module = None
        if there:
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)


MODEL, EXAMPLE = nn.GRU(3, 4), torch.zeros(5, 2, 3)
BATCHES = [EXAMPLE]


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.pb", {}, r"unknown format '\.pb'"),
        ("folder.pt2", {}, r"folder\.pt2 is a folder"),
        ("file/x.pt2", {}, "file is a file, not a folder"),
        ("x.pt2", {"opset": 17}, r"opset= is for \.onnx"),
        ("x.pt2", {"submodule": "core"}, "GRU has no such part"),
        ("x.onnx", {"int8": "int16x8", "calibration": BATCHES}, "the ways to quantise"),
        ("x.onnx", {"calibration": BATCHES}, "go together"),
        ("x.onnx", {"int8": "static", "calibration": EXAMPLE}, "give a list of batches"),
        ("x.pte", {"dynamic": ["batch"]}, r"all sizes of \.pte files .* are those of the example"),
        ("x.mlpackage", {"evaluate": lambda _: 1.0}, "no runtime here runs"),
    ],
)
def test_options_are_looked_at_first(name: str, options: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=message):
        export(MODEL, EXAMPLE, tmp_path / name, **options)


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("suffix", "there", "missing", "message"),
    [
        (".onnx", ["onnx"], "onnxscript", r"to \.onnx needs onnxscript: pip install 'reprune\[export\]'"),
        (".onnx", ["onnx", "onnxscript"], "onnxruntime", r"needs onnxruntime: pip install 'reprune\[export\]'"),
        (".tflite", [], "litert_torch", r"PyTorch models to \.tflite needs litert-torch: pip install"),
        (".tflite", ["litert_torch"], "ai_edge_litert", "needs ai-edge-litert"),
        (".tflite", ["litert_torch", "ai_edge_litert"], "ai_edge_quantizer", "int8= for PyTorch .* litert-torch"),
        (".pte", [], "executorch", r"needs executorch: pip install 'reprune\[executorch\]'"),
        (".pte", ["executorch"], "torchao", r"needs torchao: pip install 'reprune\[executorch\]'"),
        (".mlpackage", [], "coremltools", r"needs coremltools: pip install 'reprune\[coreml\]'"),
    ],
)
def test_a_missing_package_is_named_first(
    suffix: str, there: list[str], missing: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, *there, there=True)
    pretend(monkeypatch, missing, there=False)
    with pytest.raises(ExportError, match=message):
        export(MODEL, EXAMPLE, tmp_path / f"x{suffix}", int8=suffix != ".mlpackage")
    assert not list(tmp_path.iterdir())


def test_an_example_that_the_model_does_not_take_is_named(tmp_path: Path) -> None:
    for options in ({}, {"submodule": "0"}):
        with pytest.raises(ExportError, match=r"(example|submodule='0'): Sequential does not run on 5×2×7"):
            export(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), torch.zeros(5, 2, 7), tmp_path / "x.pt2", **options)


def test_folders_are_made_when_there_is_something_to_write(tmp_path: Path) -> None:
    assert checked_path(tmp_path / "a" / "b" / "x.pt2", [".pt2"]).name == "x.pt2"
    assert not list(tmp_path.iterdir())
    export(MODEL, EXAMPLE, tmp_path / "a" / "b" / "x.pt2")
    assert (tmp_path / "a" / "b" / "x.pt2").is_file()


def test_sizes_are_chosen_by_name_by_axis_or_all() -> None:
    inputs = {"x": ("batch", "time", 8), "h": (1, "batch", 4)}
    assert chosen_axes(True, {"x": 1}, inputs) == (None, {("x", 1)})
    assert chosen_axes(False, None, inputs) == (set(), set())
    assert chosen_axes("batch", None, inputs) == ({("x", 0), ("h", 1)}, set())
    assert chosen_axes(None, True, inputs)[1] == {(name, axis) for name in inputs for axis in range(3)}
    with pytest.raises(ExportError, match="dynamic= and fixed= both name axis 1 of h"):
        chosen_axes(["batch"], {"h": [1]}, inputs)
