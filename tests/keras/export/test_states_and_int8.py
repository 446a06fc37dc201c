"""Keras files carry states, hold the operators that microcontrollers have, and count what is in 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reprune
from reprune.core.exporting import ExportError
from reprune.runtimes import open_file

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
layers = keras.layers


def sequential(*parts: Any) -> Any:
    return keras.Sequential(list(parts))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype("f")


@pytest.mark.parametrize("suffix", ["onnx", "tflite"])
def test_stateful_layers_hand_their_states_over(suffix: str, tmp_path: Path) -> None:
    if suffix == "onnx":
        pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
    from reprune.keras.export import export

    model = sequential(
        layers.Input(batch_shape=(2, None, 5)),
        layers.LSTM(6, stateful=True, return_sequences=True),
        layers.GRU(4, stateful=True, return_sequences=True),
        layers.Dense(3),
    )
    model(noise(2, 3, 5))
    before = [np.asarray(state) for layer in model.layers[:2] for state in layer.states]
    report = export(model, noise(2, 4, 5), tmp_path / f"model.{suffix}")
    for kept, state in zip(before, [s for layer in model.layers[:2] for s in layer.states], strict=True):
        np.testing.assert_array_equal(kept, state)
    assert report.inputs["input_0"] == (2, "time", 5)
    assert [report.inputs[pair.input] for pair in report.states] == [(2, 6), (2, 6), (2, 4)]
    if suffix == "onnx":
        onnx = pytest.importorskip("onnx")
        operators = [node.op_type for node in onnx.load(report.path).graph.node]
        assert (operators.count("LSTM"), operators.count("GRU"), operators.count("Loop")) == (1, 1, 0)
    for layer in model.layers[:2]:
        layer.reset_states()
    run, states = open_file(report.path), [np.zeros((2, units), "f") for units in (6, 6, 4)]
    for _ in range(3):
        x = np.random.normal(size=(2, 3, 5)).astype("f")
        output, *states = run(x, *states)
        np.testing.assert_allclose(output, model(x), atol=1e-5)


def test_streaming_makes_states_of_all_layers_inputs(tmp_path: Path) -> None:
    from reprune.keras.export import export

    model = sequential(layers.Input((None, 5)), layers.GRU(6, return_sequences=True), layers.Dense(3))
    report = export(model, noise(1, 4, 5), tmp_path / "model.tflite", streaming=True)
    assert len(report.states) == 1
    run, state, x = open_file(report.path), np.zeros((1, 6), "f"), noise(1, 6, 5)
    for step in range(6):
        output, state = run(x[:, step : step + 1], state)
        np.testing.assert_allclose(output[:, 0], model(x)[:, step], atol=1e-5)
    backward = sequential(layers.Input((None, 5)), layers.Bidirectional(layers.LSTM(4)))
    with pytest.raises(ExportError, match="read backwards"):
        export(backward, noise(1, 4, 5), tmp_path / "model.tflite", streaming=True)


@pytest.mark.parametrize("suffix", ["onnx", "tflite"])
def test_a_pruned_model_streams_in_chunks_of_any_length(suffix: str, tmp_path: Path) -> None:
    if suffix == "onnx":
        pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
    keras.utils.set_random_seed(0)
    dense = sequential(
        layers.Input((None, 5)),
        layers.LSTM(8, return_sequences=True),
        layers.GRU(6, return_sequences=True),
        layers.SimpleRNN(5, return_sequences=True),
        layers.Dense(3),
    )
    small = reprune.prune(dense, [noise(4, 9, 5)], ratio=0.5, method="magnitude").model
    report = reprune.export(small, noise(2, 3, 5), tmp_path / f"model.{suffix}", streaming=True)
    x, run = np.random.default_rng(1).normal(size=(2, 11, 5)).astype("f"), open_file(report.path)
    states, found = [np.zeros((2, report.inputs[pair.input][1]), "f") for pair in report.states], []
    assert sum(state.shape[1] for state in states) < 8 + 8 + 6 + 5
    for chunk in np.split(x, [1, 4, 6], axis=1):
        output, *states = run(chunk, *states)
        found.append(output)
    np.testing.assert_allclose(np.concatenate(found, axis=1), small(x), atol=1e-5)


def test_plain_lstms_are_one_operator_and_every_call_begins_anew(tmp_path: Path) -> None:
    from reprune.keras.export import export
    from reprune.runtimes.litert import operators

    inputs = keras.Input((None, 5))
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(inputs)
    masked = layers.LSTM(4, activation="relu")(x)
    model = keras.Model(inputs, [layers.Dense(2)(masked), x])
    report = export(model, noise(1, 7, 5), tmp_path / "model.tflite")
    found = operators(report.path)
    assert (found["UNIDIRECTIONAL_SEQUENCE_LSTM"], found["WHILE"]) == (2, 1)
    assert any("reset the interpreter's variables" in note for note in report.notes)
    assert any("loops (WHILE)" in note for note in report.notes)
    assert report.outputs == {"output_0": (1, 2), "output_1": (1, "time", 12)}
    assert report.difference < 1e-5
    assert all(comparison.calls == 3 for comparison in report.comparisons)


@pytest.mark.parametrize("kind", ["GRU", "SimpleRNN"])
def test_loops_beside_an_operator_begin_with_zeros(kind: str, tmp_path: Path) -> None:
    from reprune.keras.export import export

    keras.utils.set_random_seed(0)
    one, other = layers.Input((None, 5)), layers.Input((None, 4))
    parts = [layers.LSTM(6)(one), getattr(layers, kind)(6)(other)]
    model, x = keras.Model([one, other], parts), [noise(2, 3, 5), noise(2, 4, 4)]
    # The converter gives the zeros of both one tensor, and the operator writes its state there.
    report = export(model, x, tmp_path / "model.tflite")
    assert report.difference < 1e-6
    assert report.inputs == {"input_0": (2, "input_0_time", 5), "input_1": (2, "input_1_time", 4)}


def test_streaming_says_what_else_reads_across_steps(tmp_path: Path) -> None:
    from reprune.keras.export import export

    for front, differs in ((layers.Conv1D(4, 2, padding="causal"), True), (layers.Conv1D(4, 1), False)):
        model = sequential(layers.Input((None, 5)), front, layers.GRU(6, return_sequences=True), layers.Dense(3))
        report = export(model, noise(1, 4, 5), tmp_path / "model.tflite", streaming=True)
        assert any("reads across steps" in note for note in report.notes) == differs


@pytest.mark.parametrize(
    ("layer", "way", "share"), [("LSTM", "static", 0.9), ("GRU", "static", 1.0), ("LSTM", "int16x8", 1.0)]
)
def test_full_integer_files(layer: str, way: str, share: float, tmp_path: Path) -> None:
    from reprune.keras.export import export

    model = sequential(layers.Input((6, 5)), getattr(layers, layer)(16, return_sequences=True), layers.Dense(3))
    calibration = [np.random.default_rng(seed).normal(size=(4, 6, 5)).astype("f") for seed in range(6)]
    path = tmp_path / "model.tflite"
    report = export(model, noise(1, 6, 5), path, int8=way, calibration=calibration)
    assert report.eight_bits is not None
    assert report.eight_bits.weights / report.eight_bits.of_weights >= share
    assert report.eight_bits.weights >= (4 if layer == "LSTM" else 3) * 16 * (5 + 16) + 3 * 16
    assert report.quantised_difference < 0.05


def test_integer_lstms_side_by_side_read_the_state_that_they_wrote(tmp_path: Path) -> None:
    from reprune.keras.export import export

    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 5))
    model = keras.Model(inputs, layers.Dense(3)(layers.Bidirectional(layers.LSTM(12))(inputs)))
    calibration = list(np.random.default_rng(0).normal(size=(20, 4, 8, 5)).astype("f"))
    report = export(model, noise(1, 8, 5), tmp_path / "model.tflite", int8="static", calibration=calibration)
    run, x = open_file(report.path), noise(24, 8, 5)
    found = np.concatenate([run(x[row : row + 1])[0] for row in range(24)])
    # A step of 8 bits is 0.005 here. With states in another scale than the outputs the mean is 0.08.
    assert np.abs(found - model(x).numpy()).mean() < 0.005


def test_8_bits_of_nothing_are_counted_as_nothing(tmp_path: Path) -> None:
    from reprune.keras.export import export

    model = sequential(layers.Input((4, 5)), layers.GRU(8, unroll=True), layers.Dense(3))
    report = export(model, noise(1, 4, 5), tmp_path / "model.tflite", int8=True)
    assert report.eight_bits is not None
    assert (report.eight_bits.tensors, report.eight_bits.weights) == (0, 0)
    assert "8 bits: 0 of" in str(report)
    assert "1,024 numbers and more" in str(report)


def test_sizes_are_reported_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
    from reprune.keras.export import export

    model = sequential(layers.Input((None, 3)), layers.GRU(4, return_sequences=True), layers.Dense(2))
    path = tmp_path / "model.onnx"
    report = export(model, noise(8, 6, 3), path)
    assert report.outputs == {"output_0": ("batch", "time", 2)}
    report = export(model, noise(8, 6, 3), path, fixed=["time"], opset=17)
    assert report.inputs == {"input_0": ("batch", 6, 3)}
    assert report.outputs == {"output_0": ("batch", 6, 2)}
    with pytest.raises(ExportError, match="axis 0 of input_0 cannot be free"):
        export(model, noise(8, 6, 3), tmp_path / "model.tflite", dynamic={"input_0": [0]})
