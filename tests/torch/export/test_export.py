"""Exported files compute what the models do, with the operators that runtimes are fast at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from reprune.core.exporting import ExportError
from reprune.runtimes import open_file
from reprune.torch.export import export
from reprune.torch.ragged.modules import RaggedGRU, RaggedLSTM

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


class Tokens(nn.Module):
    """Integer ids through every kind of recurrent module, states in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.lstm = nn.LSTM(6, 8, 2, bidirectional=True, batch_first=True, dropout=0.5)
        self.gru = nn.GRU(16, 5)
        self.rnn = nn.RNN(5, 4, nonlinearity="relu")
        self.output = nn.Linear(4, 3)

    def forward(self, ids: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        sequence, state = self.lstm(self.embedding(ids), hx)
        sequence, _ = self.gru(sequence.transpose(0, 1))
        return self.output(self.rnn(sequence)[0][-1]), state


class Packed(nn.Module):
    """Sequences of different lengths, packed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = RaggedLSTM(6, [[4, 3], [5, 5]], batch_first=True)
        self.output = nn.Linear(10, 3)

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(frames, lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed, (state, _) = self.lstm(packed)
        padded, _ = pad_packed_sequence(packed, batch_first=True, padding_value=-1.0)
        return self.output(torch.cat([state[2], state[3]], -1)), padded.max(1).values


class Ragged(nn.Module):
    """Layers and directions of different sizes, with projections."""

    def __init__(self) -> None:
        super().__init__()
        self.ragged = RaggedLSTM(6, [[4, 3], [5, 5]], proj_sizes=[[3, 3], [2, 4]])
        self.projected = nn.LSTM(6, 7, proj_size=4)

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        output, (h, _) = self.ragged(x)
        return output, self.projected(output, hx)[0], h


class Stream(nn.Module):
    """Frame by frame, states not in the signature."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, 2, batch_first=True)
        self.gru = RaggedGRU(8, [[5], [3]], batch_first=True)
        self.output = nn.Linear(3, 2)

    def forward(self, frames: Tensor) -> Tensor:
        return self.output(self.gru(self.lstm(frames)[0])[0])


def test_every_layer_is_one_operator_and_sizes_are_free(tmp_path: Path) -> None:
    model = Tokens().train()
    report = export(model, torch.randint(0, 20, (3, 7)), tmp_path / "model.onnx")
    found = operators(tmp_path / "model.onnx")
    assert (found["LSTM"], found["GRU"], found["RNN"]) == (2, 1, 1)
    assert not {"Scan", "Loop", "If"} & set(found)
    assert report.inputs == {"ids": ("batch", "time")}
    assert list(report.outputs.values()) == [("batch", 3), (4, "batch", 8), (4, "batch", 8)]
    assert len(report.comparisons) == 3
    assert report.difference < 1e-5
    assert model.training
    # Sizes that neither the example nor its check had.
    model.eval()
    ids = torch.randint(0, 20, (1, 2))
    outputs = open_file(tmp_path / "model.onnx")(ids.numpy())
    np.testing.assert_allclose(outputs[0], model(ids)[0].detach().numpy(), atol=1e-5)
    assert "batch, time" in str(report)
    assert "largest difference" in str(report)


def test_a_batch_of_one_leaves_the_batch_free_and_states_are_inputs(tmp_path: Path) -> None:
    state = (torch.randn(4, 1, 8), torch.randn(4, 1, 8))
    report = export(Tokens(), (torch.randint(0, 20, (1, 5)), state), tmp_path / "model.onnx", int8=True)
    assert report.inputs == {"ids": ("batch", "time"), "hx_0": (4, "batch", 8), "hx_1": (4, "batch", 8)}
    assert report.difference < 1e-5
    assert 0 < report.quantised_difference < 0.2
    assert operators(tmp_path / "model.onnx")["DynamicQuantizeLSTM"] == 2


def test_packed_sequences_become_padded_ones_with_lengths(tmp_path: Path) -> None:
    model = Packed().eval()
    inputs = (torch.randn(3, 7, 6), torch.tensor([3, 7, 2]))
    report = export(model, inputs, tmp_path / "model.onnx")
    assert report.difference < 1e-5
    assert len(report.comparisons) == 3
    # The first layer's directions differ in size: two operators; the second layer is one.
    assert operators(tmp_path / "model.onnx")["LSTM"] == 3
    frames, lengths = torch.randn(4, 5, 6), torch.tensor([1, 5, 4, 5])
    for output, expected in zip(
        open_file(tmp_path / "model.onnx")(frames.numpy(), lengths.numpy()), model(frames, lengths), strict=True
    ):
        np.testing.assert_allclose(output, expected.detach().numpy(), atol=1e-5)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_projections_are_exact(tmp_path: Path) -> None:
    inputs = {"x": torch.randn(7, 3, 6), "hx": (torch.randn(1, 3, 4), torch.randn(1, 3, 7))}
    report = export(Ragged(), inputs, tmp_path / "model.onnx", int8=True)
    assert report.difference < 1e-5
    assert 0 < report.quantised_difference < 0.1
    assert report.inputs["x"] == ("time", "batch", 6)


class Translator(nn.Module):
    """Two sequences of different lengths, the state of one handed to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(15, 6)
        self.encoder = nn.GRU(6, 8, batch_first=True)
        self.decoder = nn.GRU(6, 8, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, state = self.encoder(self.embedding(source))
        return self.decoder(self.embedding(target), state)[0]


def test_sequences_of_different_lengths_have_axes_of_different_names(tmp_path: Path) -> None:
    model = Translator().eval()
    inputs = (torch.randint(15, (2, 9)), torch.randint(15, (2, 5)))
    report = export(model, inputs, tmp_path / "model.onnx", int8=True)
    assert report.inputs == {"source": ("batch", "source_time"), "target": ("batch", "target_time")}
    assert report.difference < 1e-5
    assert report.eight_bits is not None
    assert any("2 GRU operator(s)" in line for line in report.eight_bits.left)
    run = open_file(tmp_path / "model.onnx")
    for lengths in ((3, 8), (8, 3)):
        given = [torch.randint(15, (4, length)) for length in lengths]
        (output,) = run(*(ids.numpy() for ids in given))
        np.testing.assert_allclose(output, model(*given).detach().numpy(), atol=0.1)
    with pytest.raises(ExportError, match="cannot run the file on float32"):
        run(np.zeros((1, 2), np.float32), given[1].numpy())
    with pytest.raises(ExportError, match="takes 2 inputs"):
        run(*[given[0].numpy()] * 3)


class Looped(nn.Module):
    """A cell in a loop of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(6, 4)

    def forward(self, frames: Tensor) -> Tensor:
        state = frames.new_zeros(frames.shape[0], 4)
        for step in frames.unbind(1):
            state = self.cell(step, state)
        return state


def test_steps_of_a_loop_are_fixed_and_the_report_says_so(tmp_path: Path) -> None:
    report = export(Looped(), torch.randn(2, 3, 6), tmp_path / "model.onnx")
    assert report.inputs == {"frames": ("batch", 3, 6)}
    assert any(note.startswith("frames: axis 1 is fixed at 3: the trace unrolls loops") for note in report.notes)


def test_streaming_carries_states_that_may_be_left_out(tmp_path: Path) -> None:
    model = Stream().eval()
    report = export(model, torch.randn(1, 4, 6), tmp_path / "model.onnx", streaming=True)
    assert list(report.inputs) == ["frames", "lstm.h_0", "lstm.c_0", "gru.h_0.0", "gru.h_0.1"]
    assert list(report.outputs) == ["output", "lstm.h_n", "lstm.c_n", "gru.h_n.0", "gru.h_n.1"]
    run = open_file(tmp_path / "model.onnx")
    frames = torch.randn(2, 6, 6)
    expected = model(frames).detach().numpy()
    np.testing.assert_allclose(run(frames.numpy())[0], expected, atol=1e-5)
    states: list[np.ndarray] = []
    for step in range(6):
        output, *states = run(frames[:, step : step + 1].numpy(), *states)
        np.testing.assert_allclose(output[:, 0], expected[:, step], atol=1e-5)
    with pytest.raises(ExportError, match="read backwards"):
        export(Tokens(), torch.randint(0, 20, (3, 7)), tmp_path / "both.onnx", streaming=True)


def test_double_precision_is_written_as_single_and_accuracy_is_reported(tmp_path: Path) -> None:
    model = nn.GRU(3, 4, batch_first=True).double()
    report = export(
        model, torch.randn(2, 3, 3).double(), tmp_path / "model.onnx", int8=True,
        evaluate=lambda run: float(np.abs(run(np.ones((1, 2, 3), np.float32))[0]).sum()),
    )  # fmt: skip
    assert report.difference < 1e-5
    assert set(report.quality) == {"float", "int8"}
    assert next(model.parameters()).dtype == torch.float64


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_file_that_differs_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="differs from the model"):
        export(Noise(), torch.randn(2, 3), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_errors_tell_the_way_out(tmp_path: Path) -> None:
    model = nn.LSTM(6, 4, batch_first=True)
    packed = pack_padded_sequence(torch.randn(2, 5, 6), torch.tensor([5, 3]), batch_first=True)
    with pytest.raises(ExportError, match="pack_padded_sequence inside"):
        export(model, (packed,), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="unknown format"):
        export(model, torch.randn(2, 5, 6), tmp_path / "model.pb")
    with pytest.raises(ExportError, match="depends on values"):
        export(Sign(), torch.randn(2, 3), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="holds no tensor"):
        export(model, {}, tmp_path / "model.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="cannot be loaded"):
        open_file(tmp_path / "bad.onnx")


def test_what_cannot_be_traced_is_said_in_the_error_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match=r"packed sequences, which only \.onnx files take"):
        export(Packed(), (torch.randn(2, 4, 6), torch.tensor([2, 4])), tmp_path / "model.pt2")
    assert capfd.readouterr() == ("", "")


def test_pt2_needs_neither_the_class_nor_the_dense_model(tmp_path: Path) -> None:
    model = Stream().eval()
    report = export(model, torch.randn(1, 4, 6), tmp_path / "model.pt2")
    assert report.difference < 1e-6
    assert report.inputs["frames"][0] == "batch"
    frames = torch.randn(5, 4, 6)
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(loaded(frames), model(frames))


def test_executorch_runs_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="executorch is not installed")
    report = export(Stream(), torch.randn(1, 4, 6), tmp_path / "model.pte")
    assert report.difference < 1e-5


@pytest.mark.parametrize(("suffix", "tool"), [("pte", "executorch"), ("tflite", "litert_torch")])
@pytest.mark.parametrize("way", ["dynamic", "static"])
def test_unrolled_steps_are_in_8_bits(suffix: str, tool: str, way: str, tmp_path: Path) -> None:
    pytest.importorskip(tool, reason=f"{tool} is not installed")
    torch.manual_seed(0)
    batches = None if way == "dynamic" else [torch.randn(1, 3, 6) for _ in range(8)]
    report = export(Looped().eval(), torch.randn(1, 3, 6), tmp_path / f"model.{suffix}", int8=way, calibration=batches)
    assert report.eight_bits is not None
    assert report.eight_bits.weights >= 4 * (6 + 4)
    assert report.eight_bits.weights / report.eight_bits.of_weights > 0.9
    assert 0 < report.quantised_difference < 0.1


def test_coreml_package_is_written(tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    report = export(Stream(), torch.randn(1, 4, 6), tmp_path / "model.mlpackage")
    assert "not compared" in str(report)
    assert list((tmp_path / "model.mlpackage").rglob("*.mlmodel"))
