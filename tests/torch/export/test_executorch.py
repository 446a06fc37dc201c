"""`.pte` files: every kind of recurrent layer is unrolled exactly; its products are in 8 bits with ranges that fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  Registers the operations that quantisers write.

from reprune.torch.export import export
from reprune.torch.export.formats.executorch import _share_ranges

OPS = torch.ops.quantized_decomposed


def test_what_meets_one_bias_has_one_range() -> None:
    graph = torch.fx.Graph()
    weight, bias, other = (graph.placeholder(name) for name in ("weight", "bias", "other"))
    states, linears = [], []
    for scale, zero, term in ((0.01, -128, bias), (0.02, 0, bias), (0.5, 3, other), (0.1, 0, None)):
        state = graph.call_function(
            OPS.quantize_per_tensor.default, (graph.placeholder("x"), scale, zero, -128, 127, torch.int8)
        )
        both = [
            graph.call_function(OPS.dequantize_per_tensor.default, (state, scale, zero, -128, 127, torch.int8))
            for _ in range(2)
        ]
        linears.append(graph.call_function(torch.ops.aten.linear.default, (both[0], weight, term)))
        states.append([state, *both])
    _share_ranges(graph)
    # From 0 to 2.55 and from -2.56 to 2.54: from -2.56 to 2.55 together.
    for node in states[0] + states[1]:
        assert node.args[1] == pytest.approx(5.11 / 255)
        assert node.args[2] == 0
    assert [state[0].args[1:3] for state in states[2:]] == [(pytest.approx(0.5), 3), (0.1, 0)]


class Layers(nn.Module):
    """One recurrent layer with its state taken and returned, two steps at once."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn, self.output = getattr(nn, kind)(5, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.rnn(x, h)
        return self.output(y), h


class Loop(nn.Module):
    """A loop over a cell, from zeros."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell, self.output = getattr(nn, kind)(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        assert state is not None
        return self.output(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize(
    ("build", "kind"), [(Layers, "GRU"), (Layers, "RNN"), (Loop, "GRUCell"), (Loop, "LSTMCell"), (Loop, "RNNCell")]
)
def test_every_kind_runs_several_calls_in_a_row(build: Any, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="executorch is not installed")
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5)
    example, options = ((x, torch.zeros(1, 1, 12)), {}) if build is Layers else (x, {"streaming": True})
    report = export(build(kind).eval(), example, tmp_path / "model.pte", **options)
    assert len(report.states) == 1 + (kind == "LSTMCell")
    assert (report.difference < 1e-6, report.comparisons[0].calls) == (True, 3)


@pytest.mark.parametrize("kind", ["GRUCell", "RNNCell"])
def test_steps_of_a_loop_share_the_ranges_of_their_states(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="executorch is not installed")
    pytest.importorskip("torchao", reason="torchao is not installed")
    torch.manual_seed(0)
    batches = [torch.randn(1, 4, 5) for _ in range(6)]
    report = export(Loop(kind).eval(), batches[0], tmp_path / "model.pte", int8="static", calibration=batches)
    assert report.eight_bits is not None
    assert report.eight_bits.weights == report.eight_bits.of_weights > 0
    # The first state is zero. With its range for the biases of all steps the difference is 0.3.
    assert 0 < report.quantised_difference < 0.02
