"""The cost model against PyTorch's own counts, dense and pruned."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import reprune.torch
from reprune.core.cost import CostModel
from reprune.torch.tracing.calling import call
from tests.helpers.torch_oracle import random_plans
from tests.helpers.torch_zoo import CASES

COUNTED = [
    "lstm", "gru_three_layers_bidirectional", "lstm_projected", "lstm_no_bias", "PackedUnsorted", "CellStack",
    "Additive", "Dot", "General", "SelfAttentionWritten", "SelfAttentionOnUnits", "Crnn", "DualPath", "TiedSoftmax",
    "Towers", "written_lstm", "WrittenGru", "BareParameters", "RecurrentHighway", "Residual", "FlattenedTime",
    "BatchNormFlattened", "SelfGated", "MultiHead", "FlattenedChannels",
]  # fmt: skip


def counted(model: nn.Module, batch: object) -> float:
    """Multiply-accumulates that PyTorch counts; oneDNN's fused kernels would be invisible to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter, torch.no_grad():
            call(model, batch)
    return counter.get_total_flops() / 2


@pytest.fixture(autouse=True)
def _unfused() -> None:
    torch.backends.mha.set_fastpath_enabled(False)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", COUNTED)
def test_macs_and_parameters(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    model, batch = case.build().eval(), case.batch(3, 6)
    structure = reprune.torch.inspect(model, [batch]).structure
    cost = CostModel(structure)
    for plan in [None, *random_plans(structure, 2)]:
        small = model if plan is None else reprune.torch.apply(model, plan)
        counts = structure.counts() if plan is None else plan.counts()
        assert cost("parameters", counts) == sum(p.numel() for p in small.parameters())
        assert cost("macs", counts) * structure.steps == pytest.approx(counted(small, batch), rel=1e-9)
