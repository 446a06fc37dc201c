"""Exported Keras models compute what the models do, in the interpreter that phones have."""

from __future__ import annotations

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
    from reprune.keras.export import export

    model = build()
    report = export(model, np.random.randn(1, 7, 6).astype("f"), tmp_path / "model.tflite", int8=True)
    assert report.difference < 1e-5
    assert report.inputs == {"input_0": (1, "time", 6)}
    frames = np.random.randn(1, 4, 6).astype("f")
    (logits,) = open_file(tmp_path / "model.tflite")(frames)
    np.testing.assert_allclose(logits, model(frames).numpy(), atol=1e-2)


def test_onnx_from_keras(tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
    from reprune.keras.export import export

    report = export(build(), np.random.randn(1, 7, 6).astype("f"), tmp_path / "model.onnx")
    assert report.difference < 1e-5
    assert report.inputs == {"input_0": ("batch", "time", 6)}


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    from reprune.keras.export import export

    with pytest.raises(ExportError, match="unknown format"):
        export(build(), np.zeros((1, 7, 6), "f"), tmp_path / "model.pte")
