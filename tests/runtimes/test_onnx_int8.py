"""Recurrent operators written out compute what the operators do, and in 8 bits nearly so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from reprune.core.exporting import ExportError
from reprune.runtimes import onnx_int8, onnx_recurrence, open_file
from reprune.torch.export import export

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Tagger(nn.Module):
    """One recurrent module of a kind, packed, from a given state, and a linear layer."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(6, 8, batch_first=True, bidirectional=True, **options)
        self.output = nn.Linear(16, 3)

    def forward(self, x: Tensor, lengths: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        y, state = self.rnn(packed, (h, h) if isinstance(self.rnn, nn.LSTM) else h)
        return self.output(pad_packed_sequence(y, batch_first=True)[0]), torch.stack(tuple(state))


def example(rows: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.randint(1, steps + 1, (rows,))
    lengths[0] = steps
    return torch.randn(rows, steps, 6), lengths, 0.5 * torch.randn(2, rows, 8)


@pytest.mark.parametrize(("kind", "options"), [("LSTM", {}), ("GRU", {}), ("RNN", {"nonlinearity": "relu"})])
def test_written_out_layers_compute_what_the_operators_do(
    kind: str, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def product(self: Any, h: str, weight: Any) -> str:
        return self.node("MatMul", [h, self.store(f"r{len(self.weights)}", weight)])

    monkeypatch.setattr(onnx_recurrence._Step, "product", product)
    torch.manual_seed(0)
    model = Tagger(kind, **options).eval()
    export(model, example(3, 5), tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    assert onnx_recurrence.write_out(proto, lambda *_: True, static=False) == []
    onnx.save(proto, tmp_path / "written.onnx")
    operators = Counter(node.op_type for node in proto.graph.node)
    assert (operators["Scan"], operators[kind]) == (2, 0)
    inputs = example(4, 7)
    for got, expected in zip(
        open_file(tmp_path / "written.onnx")(*(t.numpy() for t in inputs)), model(*inputs), strict=True
    ):
        np.testing.assert_allclose(got, expected.detach().numpy(), atol=1e-6)


class Plain(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn, self.output = getattr(nn, kind)(6, 24, batch_first=True), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.rnn(x)[0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("way", ["dynamic", "static"])
def test_reports_count_what_is_really_8_bits(
    kind: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_int8, "FASTER_FROM", 1)
    torch.manual_seed(0)
    calibration = [torch.randn(4, 9, 6) for _ in range(4)] if way == "static" else None
    path = tmp_path / "model.onnx"
    report = export(
        Plain(kind).eval(), torch.randn(2, 9, 6), path, int8=way, calibration=calibration, evaluate=lambda run: 1.0
    )
    assert report.difference < 1e-6
    assert 0 < report.quantised_difference < 0.03
    assert set(report.quality) == {"float", "int8"}
    counted = report.eight_bits
    assert counted is not None
    gates = 4 if kind == "LSTM" else 3
    assert counted.weights >= gates * 24 * (6 + 24) + 3 * 24
    assert counted.weights / counted.of_weights > 0.9
    operators = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert operators["DynamicQuantizeLSTM"] == (kind == "LSTM" and way == "dynamic")
    assert (operators["QuantizeLinear"] > 0) == (way == "static")


def test_a_small_gru_stays_as_it_is_and_the_report_says_so(tmp_path: Path) -> None:
    report = export(Plain("GRU").eval(), torch.randn(2, 9, 6), tmp_path / "model.onnx", int8=True)
    assert report.eight_bits is not None
    assert report.eight_bits.weights == 3 * 24
    assert "single precision: 1 GRU operator(s) of fewer than 384 units" in str(report)


class Running(nn.Module):
    """A step from what all rows are on average: a product reads the state that it keeps, one row, as it comes in."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 16)
        self.register_buffer("state", torch.rand(1, 16))

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.cell(x.mean(0, keepdim=True), self.state)
        return self.state


def test_states_that_may_be_left_out_stay_inputs(tmp_path: Path) -> None:
    model, x = Running().eval(), torch.randn(4, 3)
    export(model, x, tmp_path / "small.onnx", int8=True)
    run = open_file(tmp_path / "small.onnx")
    first, state = run(x.numpy())
    again, _ = run(x.numpy(), state)
    wanted = [model(x).detach().numpy() for _ in range(2)]
    np.testing.assert_allclose([first, again], wanted, atol=0.02)
    assert np.abs(again - first).max() > 0.05


def test_ways_and_calibration_go_together(tmp_path: Path) -> None:
    model, x = Plain("GRU"), torch.randn(2, 9, 6)
    with pytest.raises(ExportError, match="the ways to quantise such a file"):
        export(model, x, tmp_path / "model.onnx", int8="float8")
    with pytest.raises(ExportError, match="calibration= go together"):
        export(model, x, tmp_path / "model.onnx", int8="static")
    with pytest.raises(ExportError, match="no batch"):
        export(model, x, tmp_path / "model.onnx", int8="static", calibration=[])
    with pytest.raises(ExportError, match=r"none; \.onnx files take some"):
        export(model, x, tmp_path / "model.pt2", int8=True)
