"""Models measured side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import reprune
from reprune.recipes.bench.bench import bench
from reprune.recipes.bench.torch import count_macs
from reprune.runtimes import Runner

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def test_rows_have_ratios_beside_times(tmp_path: Path) -> None:
    example = torch.randn(1, 6, 64)
    models = {"dense": nn.LSTM(64, 64, batch_first=True), "small": nn.LSTM(64, 16, batch_first=True)}
    found = bench(models, example, runtimes=("torch", "onnxruntime-int8"), repeats=3)
    assert [(row.model, row.runtime) for row in found.rows] == [
        (name, runtime) for runtime in ("torch", "onnxruntime-int8") for name in ("dense", "small")
    ]
    small = found.rows[3]
    assert found.reduction(small) == pytest.approx((64 + 64) * 64 / ((64 + 16) * 16))
    assert small.size_mb < found.rows[2].size_mb
    assert json.loads(found.to_json())["rows"][0]["speed_up"] == 1
    found.plot(tmp_path / "plot.svg")
    assert b"<svg" in (tmp_path / "plot.svg").read_bytes()
    assert "MACs ÷" in str(found)


def test_macs_are_those_of_the_arithmetic() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    assert count_macs(model, torch.randn(7, 3)) == 7 * (15 + 10)
    assert count_macs(nn.GRU(3, 5, bidirectional=True), torch.randn(7, 2, 3)) == 14 * 2 * 3 * 5 * (3 + 5)


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.GRU(6, 8, batch_first=True)


EXAMPLE = torch.zeros(1, 5, 6)


def steps(run: Runner) -> float:
    return float(run(EXAMPLE.numpy())[0].shape[1])


def test_commands(tmp_path: Path) -> None:
    from reprune.cli.deploy import deploy_app

    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(here))
        patch.chdir(here)
        path = tmp_path / "small.onnx"
        arguments = ["--model", "test_bench:build", "--example", "test_bench:EXAMPLE", "--out", str(path)]
        arguments += ["--int8", "--evaluate", "test_bench:steps"]
        ran = CliRunner().invoke(deploy_app, ["export", *arguments])
        assert ran.exit_code == 0, ran.output
        assert "largest difference" in ran.output
        assert "float: 5" in ran.output
        assert "int8: 5" in ran.output
        options = ["--example", "test_bench:EXAMPLE", "--repeats", "2", "--json", str(tmp_path / "out.json")]
        ran = CliRunner().invoke(deploy_app, ["bench", "test_bench:build", str(path), *options])
        assert ran.exit_code == 0, ran.output
    assert len(json.loads((tmp_path / "out.json").read_text())["rows"]) == 3


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(frames)[0])


def tagger() -> nn.Module:
    return Tagger()


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(11, 4), nn.LSTM(4, 8, batch_first=True))


def keras_model() -> Any:
    keras = pytest.importorskip("keras")
    layers = [keras.Input((None, 6)), keras.layers.GRU(8, return_sequences=True), keras.layers.LSTM(4)]
    return keras.Sequential([*layers, keras.layers.Dense(3)])


def run_bench(*arguments: str) -> tuple[int, str]:
    from reprune.cli.app import app

    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(here))
        ran = CliRunner().invoke(app, ["bench", *arguments, "--repeats", "1"])
    return ran.exit_code, ran.output


def test_the_input_is_what_the_first_layer_reads(tmp_path: Path) -> None:
    reprune.prune(tagger().eval(), [EXAMPLE], method="magnitude").save(tmp_path / "small")
    out = tmp_path / "new" / "out.json"
    options = ["--runtime", "torch", "--batch", "2", "--frames", "5", "--threads", "1,2", "--json", str(out)]
    code, text = run_bench("test_bench:tagger", str(tmp_path / "small"), *options)
    assert code == 0, text
    found = json.loads(out.read_text())
    assert found["shapes"] == [[2, 5, 6]]
    dense, small = 10 * (3 * 8 * (6 + 8) + 3 * 8), 10 * (3 * 4 * (6 + 4) + 3 * 4)
    assert [(row["threads"], row["macs"]) for row in found["rows"]] == [(1, dense), (1, small), (2, dense), (2, small)]
    code, text = run_bench("test_bench:embedding", "test_bench:embedding", *options)
    assert code == 0, text
    assert json.loads(out.read_text())["shapes"] == [[2, 5]]


def test_files_say_what_they_read(tmp_path: Path) -> None:
    tagger, words = tmp_path / "tagger.onnx", tmp_path / "words.onnx"
    reprune.export(Tagger(), EXAMPLE, tagger)
    reprune.export(embedding(), torch.zeros(1, 4, dtype=torch.int64), words)
    for file, shape in ((tagger, [[2, 3, 6]]), (words, [[2, 3]])):
        out = tmp_path / "out.json"
        code, text = run_bench(str(file), str(file), "--batch", "2", "--frames", "3", "--json", str(out))
        assert code == 0, text
        assert json.loads(out.read_text())["shapes"] == shape


def test_a_runtime_that_cannot_run_the_model_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    code, text = run_bench("test_bench:build", "test_bench:build", "--runtime", "torch,litert", "--frames", "3")
    assert code == 0, text
    assert "left out: dense in litert: Exporting PyTorch models to .tflite needs litert-torch" in text
    code, text = run_bench("test_bench:build", "test_bench:build", "--runtime", "litert", "--frames", "3")
    assert code == 1
    assert "Nothing can be measured" in text


def test_keras_models_are_measured_where_they_are_deployed(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("tensorflow")
    out = tmp_path / "out.json"
    options = ["--runtime", "torch,litert", "--frames", "3", "--json", str(out)]
    code, text = run_bench("test_bench:keras_model", "test_bench:keras_model", *options)
    assert code == 0, text
    assert "left out: dense in torch" in text
    (dense, _) = json.loads(out.read_text())["rows"]
    assert dense["macs"] == 3 * (3 * 8 * (6 + 8) + 4 * 4 * (8 + 4)) + 4 * 3


def keras_batches() -> list[Any]:
    return [np.random.default_rng(0).normal(size=(4, 5, 6)).astype("float32")]


def keras_example() -> Any:
    return keras_batches()[0][:1]


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_keras_models_are_pruned_exported_and_measured(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("tensorflow")
    from reprune.cli.app import app

    keras_model().save_weights(tmp_path / "dense.weights.h5")
    model, small, file = ["--model", "test_bench:keras_model"], tmp_path / "small", tmp_path / "small.tflite"
    weights = ["--weights", str(tmp_path / "dense.weights.h5")]
    batches, one = "test_bench:keras_batches", "test_bench:keras_example"
    steps = [
        ["inspect", *model, "--example", batches],
        ["prune", *model, *weights, "--batches", batches, "--method", "magnitude", "--out", str(small)],
        ["export", *model, "--pruned", str(small), "--example", one, "--out", str(file)],
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        for step in steps:
            ran = CliRunner().invoke(app, step)
            assert ran.exit_code == 0, ran.output
        (tmp_path / "wrong.weights.h5").write_bytes(b"no weights")
        ran = CliRunner().invoke(app, [*steps[1], "--weights", str(tmp_path / "wrong.weights.h5")])
    assert ran.exit_code == 1
    assert "does not hold the weights" in ran.output
    options = ["--runtime", "litert", "--example", one]
    code, text = run_bench("test_bench:keras_model", str(small), str(file), *options)
    assert code == 0, text
    assert text.count("litert") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dense", "pruned"], "no such file or folder"),
        ([__file__, "test_bench:build"], "no runtime for '.py' files"),
        (["test_bench:build", "test_bench:build", "--runtime", "torch,tpu"], "Unknown runtime 'tpu'"),
        (["test_bench:build", "test_bench:build", "--features", "7"], "does not take this input"),
        (["test_bench:build", "test_bench:build", "--threads", "0"], "--threads 0"),
        (["test_bench:build", "test_bench:build", "--batch", "0"], "at least 1"),
        (["test_bench:build", "test_bench:build", "--plot", "speed.pdf"], "ends in .png or .svg"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str) -> None:
    code, text = run_bench(*arguments)
    assert code == 1
    assert message in " ".join(text.split())
