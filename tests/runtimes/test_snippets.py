"""The snippets of the docs are the examples, and these stream a pruned model as the model itself does."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from examples.on_device.stream import stream
from torch import Tensor, nn

import reprune
from reprune.torch.export import export

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "on_device"
CHUNKS = [1, 3, 2, 3, 1]
"""Frames of each call."""


class Detector(nn.Module):
    """Two kinds of layers and a cell, all of which start from zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 12, 2, batch_first=True)
        self.gru = nn.GRU(12, 10, batch_first=True)
        self.output = nn.Linear(10, 4)

    def forward(self, frames: Tensor) -> Tensor:
        return self.output(self.gru(self.lstm(frames)[0])[0])


def pruned_detector() -> tuple[nn.Module, Tensor]:
    """A model of layers of different sizes, and a sequence."""
    torch.manual_seed(0)
    frames = torch.randn(1, sum(CHUNKS), 6)
    small = reprune.prune(Detector().eval(), [torch.randn(4, 9, 6)], ratio=0.6, method="iss-gm").model
    return small, frames


@pytest.mark.parametrize("name", ["stream.py", "stream.cpp", "stream.mjs", "Stream.kt"])
def test_the_docs_show_the_examples(name: str) -> None:
    assert (EXAMPLES / name).read_text() in (ROOT / "docs" / "deploy.md").read_text()


def test_python(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    small, frames = pruned_detector()
    export(small, frames[:, :1], tmp_path / "small.onnx", streaming=True, optional_states=False)
    found = list(stream(str(tmp_path / "small.onnx"), [chunk.numpy() for chunk in frames.split(CHUNKS, 1)]))
    np.testing.assert_allclose(np.concatenate(found, 1), small(frames).detach().numpy(), atol=1e-6)


def test_cpp(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    headers = os.environ.get("ONNXRUNTIME_INCLUDE", "/usr/include/onnxruntime")
    if not (Path(headers) / "onnxruntime_cxx_api.h").is_file():
        pytest.skip("ONNX Runtime's C++ headers are not here; set ONNXRUNTIME_INCLUDE to where they are")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    library = next((Path(ort.__file__).parent / "capi").glob("libonnxruntime.so*"), None)
    if library is None:
        pytest.skip("this build of onnxruntime comes without its library")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # As an installed library is called.
        (tmp_path / name).symlink_to(library)
    command = [
        "g++",
        "-std=c++17",
        "-Wall",
        "-Werror",
        EXAMPLES / "stream.cpp",
        "-I",
        headers,
        "-o",
        tmp_path / "stream",
    ]
    subprocess.run([*command, "-L", tmp_path, "-lonnxruntime", f"-Wl,-rpath,{tmp_path}"], check=True)
    small, frames = pruned_detector()
    export(small, frames[:, :1], tmp_path / "small.onnx", streaming=True, optional_states=False)
    for chunk in ("1", "3"):
        run = subprocess.run(
            [tmp_path / "stream", tmp_path / "small.onnx", "6", chunk],
            input=frames.numpy().tobytes(), capture_output=True, check=True,
        )  # fmt: skip
        found = np.frombuffer(run.stdout, np.float32).reshape(1, -1, 4)
        np.testing.assert_allclose(found, small(frames).detach().numpy(), atol=1e-6)
