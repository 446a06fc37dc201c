"""Exported Keras models compute what the models do, in the interpreter that phones have."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from reprune.core.exporting import ExportError
from reprune.runtimes import open_file

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")


def build():
    inputs = keras.Input((None, 6))
    x = keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True))(inputs)
    x = keras.layers.GRU(5, return_sequences=True)(x)
    x = keras.layers.LSTM(3)(x)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def test_tflite_runs_in_litert_with_time_free(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    from reprune.keras.export.formats import export

    model = build()
    report = export(model, np.random.randn(1, 7, 6).astype("f"), tmp_path / "model.tflite", int8=True)
    assert report.difference < 1e-5
    assert report.inputs == {"input_0": (1, "time", 6)}
    frames = np.random.randn(1, 4, 6).astype("f")
    (logits,) = open_file(tmp_path / "model.tflite")(frames)
    np.testing.assert_allclose(logits, model(frames).numpy(), atol=1e-2)


def operators(path: Path) -> Counter[str]:
    onnx = pytest.importorskip("onnx")
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_onnx_from_keras(tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
    from reprune.keras.export.formats import export

    model, frames = build(), np.random.randn(1, 7, 6).astype("f")
    before = np.asarray(model(frames))
    report = export(model, frames, tmp_path / "model.onnx", int8=True)
    assert report.difference < 1e-5
    assert report.inputs == {"input_0": ("batch", "time", 6)}
    assert (operators(tmp_path / "model.onnx") & Counter(["GRU", "Loop"])) == Counter(["GRU"])
    assert report.eight_bits is not None
    assert any("1 GRU operator(s)" in line for line in report.eight_bits.left)
    np.testing.assert_array_equal(model(frames), before)


def test_recurrent_layers_of_every_kind_are_operators(tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
    from reprune.keras.export.formats import export

    layers = keras.layers
    inputs = keras.Input((None, 6))
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True))(inputs)
    x, state = layers.GRU(5, return_sequences=True, return_state=True, reset_after=False, go_backwards=True)(x)
    x = layers.GRU(5, return_sequences=True, use_bias=False)(x, initial_state=state)
    x = layers.Bidirectional(layers.SimpleRNN(3, activation="relu"))(x)
    model = keras.Model(inputs, [layers.Dense(2)(x), state])
    for weight in model.weights:
        weight.assign(np.random.default_rng(0).normal(size=weight.shape) * 0.4)
    report = export(model, np.random.randn(2, 7, 6).astype("f"), tmp_path / "model.onnx")
    assert report.difference < 1e-5
    found = operators(tmp_path / "model.onnx")
    assert (found["GRU"], found["RNN"], found["Loop"]) == (4, 2, 0)
    frames = np.random.randn(4, 3, 6).astype("f")
    for got, expected in zip(open_file(tmp_path / "model.onnx")(frames), model(frames), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


class Stepwise(keras.Model):
    """A loop over a cell, as many steps as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = keras.layers.GRUCell(4)

    def call(self, x):
        state = [keras.ops.zeros((keras.ops.shape(x)[0], 4))]
        for step in range(x.shape[1]):
            output, state = self.cell(x[:, step], state)
        return output


@pytest.mark.parametrize("suffix", ["onnx", "tflite"])
def test_steps_that_the_code_counts_are_fixed(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx" if suffix == "onnx" else "ai_edge_litert")
    from reprune.keras.export.formats import export

    model, x = Stepwise(), np.random.randn(2, 3, 5).astype("f")
    model(x)
    report = export(model, x, tmp_path / f"model.{suffix}")
    assert report.inputs == {"input_0": ("batch" if suffix == "onnx" else 2, 3, 5)}
    assert any("fixed at the example's: with them free" in note for note in report.notes)
    with pytest.raises(ExportError, match=r"cannot hold .*'NoneType' object"):
        export(model, x, tmp_path / f"model.{suffix}", dynamic=["time"])


def test_lengths_that_are_told_apart_by_the_model_are_told_apart_in_the_file(tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
    from reprune.keras.export.formats import export

    source, target = keras.Input((None, 5)), keras.Input((None, 4))
    steps, state = keras.layers.GRU(6, return_sequences=True, return_state=True)(source)
    decoded = keras.layers.GRU(6, return_sequences=True)(target, initial_state=state)
    model = keras.Model([source, target], [decoded, steps])
    x = [np.random.randn(2, 4, width).astype("f") for width in (5, 4)]
    report = export(model, x, tmp_path / "model.onnx")
    assert report.inputs == {"input_0": ("batch", "input_0_time", 5), "input_1": ("batch", "input_1_time", 4)}
    assert [axes[1] for axes in report.outputs.values()] == ["input_1_time", "input_0_time"]
    given = [np.random.randn(3, steps, width).astype("f") for steps, width in ((7, 5), (2, 4))]
    np.testing.assert_allclose(open_file(report.path)(*given)[0], model(given)[0], atol=1e-5)


def test_masked_layers_stay_loops(tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
    from reprune.keras.export.formats import export

    embedding = keras.layers.Embedding(9, 6, mask_zero=True)
    model = keras.Sequential([keras.Input((None,), dtype="int32"), embedding, keras.layers.GRU(5)])
    report = export(model, np.array([[1, 2, 0, 0], [3, 4, 5, 0]], "int32"), tmp_path / "model.onnx")
    assert report.difference < 1e-5
    assert any("became loops" in note for note in report.notes)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    from reprune.keras.export.formats import export

    with pytest.raises(ExportError, match="unknown format"):
        export(build(), np.zeros((1, 7, 6), "f"), tmp_path / "model.pte")
    with pytest.raises(ExportError, match="read backwards"):
        export(build(), np.zeros((1, 7, 6), "f"), tmp_path / "model.onnx", streaming=True)


def test_states_that_a_model_takes_and_returns_carry_it_frame_by_frame(tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
    from reprune.keras.export.formats import export

    frames, h, c = keras.Input((None, 6)), keras.Input((4,)), keras.Input((4,))
    sequence, *states = keras.layers.LSTM(4, return_sequences=True, return_state=True)(frames, initial_state=[h, c])
    model = keras.Model([frames, h, c], [keras.layers.Dense(2)(sequence), *states])
    x, zeros = np.random.randn(2, 5, 6).astype("f"), [np.zeros((2, 4), "f")] * 2
    report = export(model, [x, *zeros], tmp_path / "model.onnx")
    pairs = [(pair.output, pair.input) for pair in report.states]
    assert pairs == [("output_1", "input_1"), ("output_2", "input_2")]
    with pytest.raises(ExportError, match=r"the example: .* has shape \(2, 9\), and .* takes \(None, 4\)"):
        export(model, [x, np.zeros((2, 9), "f"), zeros[1]], tmp_path / "wide.onnx")
    run = open_file(tmp_path / "model.onnx")
    expected, *_ = run(x, *zeros)
    for step in range(5):
        output, *zeros = run(x[:, step : step + 1], *zeros)
        np.testing.assert_allclose(output[:, 0], expected[:, step], atol=1e-5)
