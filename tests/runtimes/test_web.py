"""Pruned models answer in a real browser, by onnxruntime-web, through the example that the docs show."""

from __future__ import annotations

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reprune
from reprune.torch.export import export
from tests.runtimes.test_snippets import CHUNKS, pruned_detector

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
wait = pytest.importorskip("selenium.webdriver.support.wait")
pytest.importorskip("onnxscript")

WEB = Path(__file__).parent / "web"
EXAMPLE = Path(__file__).parents[2] / "examples" / "on_device" / "stream.mjs"
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


class Handler(SimpleHTTPRequestHandler):
    extensions_map: ClassVar = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, format: str, *args: object) -> None:
        pass


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 12, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(24, 10, batch_first=True)
        self.output = nn.Linear(10, 4)

    def forward(self, frames: Tensor) -> Tensor:
        return self.output(self.gru(self.lstm(frames)[0])[0][:, -1])


def in_browser(folder: Path, chunks: list[Tensor]) -> list[list[float]]:
    """What the page makes of `model.onnx` in a folder, and of these chunks one after the other."""
    browser, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver_path is None:
        pytest.skip("chromium and chromedriver are not installed")
    if not (WEB / "node_modules").is_dir():
        pytest.skip("onnxruntime-web is not installed: npm install --prefix tests/runtimes/web")
    values = [{"shape": list(chunk.shape), "values": chunk.flatten().tolist()} for chunk in chunks]
    (folder / "chunks.json").write_text(json.dumps(values))
    for file in (WEB / "index.html", EXAMPLE):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "node_modules").symlink_to(WEB / "node_modules")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    try:
        driver.get(f"http://127.0.0.1:{server.server_port}/index.html")
        text = "return document.getElementById('result').textContent"
        wait.WebDriverWait(driver, 60).until(lambda d: d.execute_script(text) != "running")
        answer: list[list[float]] = json.loads(driver.execute_script(text))
        return answer
    finally:
        driver.quit()
        server.shutdown()
        server.server_close()


def test_a_page_classifies_a_sequence(tmp_path: Path) -> None:
    torch.manual_seed(0)
    frames = torch.randn(1, 9, 6)
    small = reprune.prune(Classifier().eval(), [frames], ratio=0.5, method="magnitude").model
    export(small, frames[:, :4], tmp_path / "model.onnx")
    expected = small(frames).detach().numpy()
    np.testing.assert_allclose(in_browser(tmp_path, [frames]), expected, atol=1e-5)


def test_a_page_streams(tmp_path: Path) -> None:
    small, frames = pruned_detector()
    export(small, frames[:, :1], tmp_path / "model.onnx", streaming=True, optional_states=False)
    scores = np.concatenate([np.reshape(part, (-1, 4)) for part in in_browser(tmp_path, list(frames.split(CHUNKS, 1)))])
    np.testing.assert_allclose(scores, small(frames)[0].detach().numpy(), atol=1e-5)
