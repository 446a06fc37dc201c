"""Training with rounded weights: what was trained is what the 8-bit file holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reprune
import reprune.torch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


def rounded(weight: Tensor) -> np.ndarray:
    """By NumPy: each row in whole steps, the largest magnitude being 127."""
    values = weight.detach().numpy().astype(np.float64)
    steps = np.abs(values).max(1, keepdims=True) / 127
    return np.rint(values / steps) * steps


def test_every_pass_uses_rounded_weights_and_trains_those_behind_them() -> None:
    torch.manual_seed(0)
    model, x, y = Net(), torch.randn(16, 7, 5), torch.randn(16, 7, 3)
    plain = Net()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        for weight in (w for w in plain.parameters() if w.ndim == 2):
            weight.copy_(torch.tensor(rounded(weight)))
    assert reprune.torch.fake_quantise(model) is model
    torch.testing.assert_close(model(x), plain(x), atol=1e-5, rtol=1e-5)
    # Straight through: the gradient is that at the rounded weights.
    for net in (model, plain):
        (net(x) - y).square().mean().backward()
    torch.testing.assert_close(
        model.lstm.parametrizations.weight_hh_l1.original.grad, plain.lstm.weight_hh_l1.grad, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("ragged", [False, True])
def test_the_file_holds_what_was_trained(ragged: bool, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model, x, y = Net(), torch.randn(16, 7, 5), torch.randn(16, 7, 3)
    plan = reprune.plan(model, [x], 0.25, method="magnitude", round_to=2)
    kept = {"lstm:l0": range(6), "lstm:l1": range(4 if ragged else 6)}
    small = reprune.torch.fake_quantise(reprune.apply(model, plan.with_kept(kept), compensate=False))
    optimizer = torch.optim.Adam(small.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = (small(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    report = reprune.export(small, x[:1], tmp_path / "small.onnx", int8=True)
    assert report.difference < 1e-5
    proto = onnx.load(str(report.path))
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    layers = [node for node in proto.graph.node if node.op_type == "DynamicQuantizeLSTM"]
    assert len(layers) == 2
    for index, node in enumerate(layers):
        units = len(kept[f"lstm:l{index}"])
        order = np.concatenate([np.arange(units) + gate * units for gate in (0, 3, 1, 2)])  # i, o, f, c of i, f, c, o
        for kind, place, scale in (("ih", 1, 8), ("hh", 2, 10)):
            held = tensors[node.input[place]][0].astype(np.float64) * tensors[node.input[scale]][0]
            trained = getattr(small.lstm, f"weight_{kind}_l{index}").detach().numpy()
            np.testing.assert_allclose(held.T, trained[order], rtol=1e-5, atol=1e-7)


def test_static_files_hold_what_was_trained(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model, x = reprune.torch.fake_quantise(Net()), torch.randn(16, 7, 5)
    path = tmp_path / "model.onnx"
    reprune.export(model, x[:1], path, int8="static", calibration=[x])
    graph = onnx.load(str(path)).graph
    graphs = [graph, *(entry.g for node in graph.node for entry in node.attribute if entry.HasField("g"))]
    stored = {t.name: onnx.numpy_helper.to_array(t) for part in graphs for t in part.initializer}
    held = []
    for node in (node for part in graphs for node in part.node if node.op_type == "DequantizeLinear"):
        whole, scale = (stored.get(name) for name in node.input[:2])
        if whole is not None and whole.dtype == np.int8 and whole.ndim == 2:
            axis = next(entry.i for entry in node.attribute if entry.name == "axis")
            real = whole * np.expand_dims(scale.astype(np.float64), 1 - axis)
            held.append(real if real.shape[0] in (32, 3) else real.T)
    order = np.concatenate([np.arange(8) + gate * 8 for gate in (0, 3, 1, 2)])  # i, o, f, c of i, f, c, o
    weights = model.lstm.parametrizations
    trained = [rounded(weights[f"weight_{kind}_l{layer}"].original)[order] for kind in ("ih", "hh") for layer in (0, 1)]
    trained.append(rounded(model.head.parametrizations["weight"].original))
    assert len(held) == len(trained)
    for matrix in trained:
        assert any(own.shape == matrix.shape and np.allclose(own, matrix, rtol=1e-5, atol=1e-7) for own in held)
