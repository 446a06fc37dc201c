"""Sizes that a model can vary stay free, those that it cannot are found, and the user has the last word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reprune.core.exporting import ExportError
from reprune.runtimes import open_file
from reprune.torch.export import export

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Flattened(nn.Module):
    """A convolution, an LSTM, and a layer that knows how many steps there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rnn = nn.Conv1d(4, 6, 3, stride=2), nn.LSTM(6, 8, batch_first=True)
        self.output = nn.Linear(9 * 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.rnn(self.conv(x).transpose(1, 2))[0].flatten(1))


class Counted(nn.Module):
    """Makes a constant of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x, torch.zeros(len(x), 6))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.output = nn.LSTM(4, 6, batch_first=True, bidirectional=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.lstm(x)[0])[:, 1:]


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_size_that_a_layer_knows_is_fixed(suffix: str, tmp_path: Path) -> None:
    model = Flattened().eval()
    report = export(model, torch.randn(1, 4, 20), tmp_path / f"model.{suffix}")
    assert report.inputs == {"x": ("batch", 4, 20)}
    assert report.outputs == {"output": ("batch", 3)}
    assert any("axis 2 is fixed at 20" in note for note in report.notes)
    x = torch.randn(5, 4, 20)
    np.testing.assert_allclose(open_file(report.path)(x.numpy())[0], model(x).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_that_the_code_counts_is_fixed_at_the_example_s(rows: int, tmp_path: Path) -> None:
    report = export(Counted(), torch.randn(rows, 4), tmp_path / "model.onnx")
    assert report.inputs == {"x": (rows, 4)}
    assert report.outputs == {"output": (rows, 6)}
    assert report.difference < 1e-6
    with pytest.raises(ExportError, match="axis 0 of x cannot be free"):
        export(Counted(), torch.randn(rows, 4), tmp_path / "model.onnx", dynamic={"x": [0]})


def test_free_outputs_are_named(tmp_path: Path) -> None:
    report = export(Tagger(), torch.randn(8, 6, 4), tmp_path / "model.onnx")
    assert report.outputs == {"output": ("batch", "time - 1", 3)}


class Written(nn.Module):
    """A GRU written by hand, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.again = nn.Linear(4, 18), nn.Linear(6, 18)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 6)
        for step in x.unbind(1):
            r, z, n = self.read(step).chunk(3, 1)
            again_r, again_z, again_n = self.again(h).chunk(3, 1)
            z = (z + again_z).sigmoid()
            h = z * h + (1 - z) * (n + (r + again_r).sigmoid() * again_n).tanh()
        return h


class Strided(nn.Module):
    """Halves the steps before an LSTM reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rnn = nn.Conv1d(4, 6, 2, stride=2), nn.LSTM(6, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.conv(x.transpose(1, 2)).transpose(1, 2))[0]


class Words(nn.Module):
    """Letters of words of sentences: two times in one input."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.sentence = nn.GRU(4, 6, batch_first=True), nn.GRU(6, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        state = self.word(x.flatten(0, 1))[1]
        return self.sentence(state.reshape(x.shape[0], x.shape[1], -1))[0]


@pytest.mark.parametrize(
    ("build", "shape", "given", "returned"),
    [
        (Written, (3, 5, 4), ("batch", 5, 4), ("batch", 6)),
        (Strided, (3, 8, 4), ("batch", "time", 4), ("batch", "(time//2)", 5)),
        (Words, (2, 3, 5, 4), ("batch", "x_time1", "x_time2", 4), ("batch", "x_time1", 5)),
    ],
)
def test_sizes_mean_what_they_do_where_units_are(
    build: Any, shape: tuple[int, ...], given: tuple[Any, ...], returned: tuple[Any, ...], tmp_path: Path
) -> None:
    report = export(build().eval(), torch.randn(shape), tmp_path / "model.onnx")
    assert (report.inputs, report.outputs) == ({"x": given}, {"output": returned})
    ports = onnx.load(tmp_path / "model.onnx").graph.input
    assert [dim.dim_param or dim.dim_value for dim in ports[0].type.tensor_type.shape.dim] == list(given)


@pytest.mark.parametrize(
    ("options", "axes"),
    [
        ({"dynamic": True, "fixed": ["time"]}, ("batch", 5, 4)),
        ({"dynamic": False}, (2, 5, 4)),
        ({"dynamic": ["time"]}, (2, "time", 4)),
        ({"dynamic": {"x": [0]}}, ("batch", 5, 4)),
        ({"fixed": ["batch"]}, (2, "time", 4)),
        ({"fixed": {"x": [1]}}, ("batch", 5, 4)),
    ],
)
def test_the_user_says_which_sizes_are_free(options: Any, axes: tuple[Any, ...], tmp_path: Path) -> None:
    report = export(Tagger(), torch.randn(2, 5, 4), tmp_path / "model.onnx", **options)
    assert report.inputs == {"x": axes}
    ports = onnx.load(tmp_path / "model.onnx").graph.input
    assert [dim.dim_param or dim.dim_value for dim in ports[0].type.tensor_type.shape.dim] == list(axes)


def test_sizes_that_do_not_exist_are_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="those that can be free are: batch, time"):
        export(Tagger(), torch.randn(2, 5, 4), tmp_path / "model.onnx", dynamic=["frames"])
    with pytest.raises(ExportError, match="no axis 3 of 'x'"):
        export(Tagger(), torch.randn(2, 5, 4), tmp_path / "model.onnx", fixed={"x": [3]})


@pytest.mark.parametrize("opset", [17, 20])
def test_the_operator_set_can_be_chosen(opset: int, tmp_path: Path) -> None:
    report = export(Tagger(), torch.randn(2, 5, 4), tmp_path / "model.onnx", opset=opset)
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == opset
    assert report.difference < 1e-6
    with pytest.raises(ExportError, match=r"opset= is for \.onnx"):
        export(Tagger(), torch.randn(2, 5, 4), tmp_path / "model.pt2", opset=opset)


class Spectral(nn.Module):
    """What no format knows around a recurrent core."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Tagger()

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(self.core(x))


def test_what_a_format_does_not_know_is_named_with_the_way_out(tmp_path: Path) -> None:
    model, example = Spectral().eval(), torch.randn(2, 5, 4)
    with pytest.raises(ExportError, match=r"(?s)\.onnx cannot hold Spectral.*svd.*submodule='core'"):
        export(model, example, tmp_path / "model.onnx")
    report = export(model, example, tmp_path / "model.onnx", submodule="core")
    assert report.inputs == {"x": ("batch", "time", 4)}
    x = torch.randn(3, 7, 4)
    np.testing.assert_allclose(open_file(report.path)(x.numpy())[0], model.core(x).detach().numpy(), atol=1e-6)
    with pytest.raises(ExportError, match="no such part; it has core"):
        export(model, example, tmp_path / "model.onnx", submodule="heart")
