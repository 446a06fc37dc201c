"""Calibration batches of other sizes than the example, of parts of a model, and of models with states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reprune.core.exporting import ExportError
from reprune.torch.export import export
from reprune.torch.export.calibration import calibration_inputs, running_on
from reprune.torch.export.capture import capture
from reprune.torch.export.example import Example
from reprune.torch.export.states import StateTensor

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class Spectral(nn.Module):
    """An operation that shape inference does not follow, around a recurrent core of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.output = nn.GRU(5, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=-1)
        y: Tensor = torch.fft.irfft(spectrum * self.output(self.core(spectrum.abs())[0]).sigmoid(), n=8, dim=-1)
        return y


class Average(nn.Module):
    """A running mean: the closed form tells every state."""

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        memory = (x + memory) / 2
        return memory, memory


def test_states_begin_anew_where_the_batch_has_another_size() -> None:
    model = Average()
    captured = capture(model, Example.of(model, (torch.zeros(2, 3), torch.zeros(2, 3))), free={(0, 0), (1, 0)})
    batches = [Example.of(model, (torch.full((rows, 3), 8.0), torch.zeros(rows, 3))) for rows in (4, 4, 3)]
    found = calibration_inputs(model, model, captured, [StateTensor("memory", 1)], batches)
    # Half of the way to 8 in every call: on through the second batch, anew in the third.
    assert [state[0, 0] for _, state in found] == [0, 4, 6, 7, 7.5, 7.75, 0, 4, 6]
    assert [x.shape for x, _ in found] == [(4, 3)] * 6 + [(3, 3)] * 3


class Counting(nn.Module):
    """Counts its calls; does not take negative numbers."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if bool((x < 0).any()):
            raise ValueError("negative")
        return x


def test_a_batch_costs_no_pass_of_its_own() -> None:
    model = Counting()
    captured = capture(nn.Identity(), Example.of(nn.Identity(), torch.zeros(2, 3)), free={(0, 0)})
    batches = [Example.of(nn.Identity(), torch.full((2, 3), value)) for value in (1.0, 2.0, 3.0, -1.0)]
    found = calibration_inputs(model, model, captured, [], batches)
    # One for their shape; which of them the model does not take is looked for when something fails.
    assert (len(found), model.calls) == (4, 1)
    with running_on(model, captured.example, found):
        pass
    assert model.calls == 1
    given = captured.example
    with pytest.raises(ExportError, match="Counting does not run on 2×3: negative"), running_on(model, given, found):
        raise RuntimeError("out of range")
    with pytest.raises(RuntimeError, match="full disk"), running_on(model, given, found[:3]):
        raise RuntimeError("full disk")


def test_batches_are_cut_where_the_file_s_sizes_are_fixed() -> None:
    model = nn.Flatten(0)
    captured = capture(model, Example.of(model, torch.zeros(2, 3)))
    batch = torch.arange(5 * 7).reshape(5, 7).float()
    found = [arrays[0] for arrays in calibration_inputs(model, model, captured, [], [Example.of(model, batch)])]
    assert len(found) == 4
    np.testing.assert_array_equal(np.sort(np.concatenate(found, None)), np.sort(batch[:4, :6].flatten().numpy()))
    np.testing.assert_array_equal(found[1], batch[:2, 3:6].numpy())
    with pytest.raises(ExportError, match=r"input is 3 in a batch, and 2×3 in the example"):
        calibration_inputs(model, model, captured, [], [Example.of(model, torch.zeros(3))])
    with pytest.raises(ExportError, match=r"input is 1×3 in a batch, and the file takes 2×3; its axis 0 is fixed at 2"):
        calibration_inputs(model, model, captured, [], [Example.of(model, torch.zeros(1, 3))])


def test_a_part_is_calibrated_on_what_the_model_gives_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batches = Spectral().eval(), [torch.randn(3, 7, 8) for _ in range(4)]
    whole = export(model, batches[0], tmp_path / "whole.onnx", int8="static", calibration=batches)
    part = export(model, batches[0], tmp_path / "part.onnx", int8="static", calibration=batches, submodule="core")
    for report in (whole, part):
        assert 0 < max(comparison.relative for comparison in report.quantised) < 0.03
    assert not part.notes or "cut off" not in str(part)
    quiet = [0.1 * batch for batch in batches]
    report = export(model, batches[0], tmp_path / "x.onnx", int8="static", calibration=quiet)
    assert any(note.startswith("x reaches ") and "cut off" in note for note in report.notes)
    with pytest.raises(ExportError, match="calibration=: Spectral does not run on 3×7×12"):
        export(model, batches[0], tmp_path / "x.onnx", int8="static", calibration=[torch.randn(3, 7, 12)])
