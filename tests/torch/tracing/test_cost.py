"""The cost model against PyTorch's own counts, dense and pruned."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import reprune.torch
from reprune.core.budget.cost import CostModel
from reprune.torch.tracing.running.calling import call
from tests.helpers.torch_oracle import random_plans
from tests.helpers.torch_zoo import CASES
from tests.helpers.width_zoo import WIDTH_CASES

COUNTED = [
    "lstm", "gru_three_layers_bidirectional", "lstm_projected", "lstm_no_bias", "PackedUnsorted", "CellStack",
    "Additive", "Dot", "General", "SelfAttentionWritten", "SelfAttentionOnUnits", "Crnn", "DualPath", "TiedSoftmax",
    "Towers", "written_lstm", "WrittenGru", "BareParameters", "RecurrentHighway", "Residual", "FlattenedTime",
    "BatchNormFlattened", "SelfGated", "MultiHead", "FlattenedChannels",
]  # fmt: skip


def counted(model: nn.Module, batch: object) -> float:
    """Multiply-accumulates that PyTorch counts; fused kernels of a processor would be invisible to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH)
        with plain[0], plain[1], FlopCounterMode(display=False) as counter, torch.no_grad():
            call(model, batch)
    return counter.get_total_flops() / 2


@pytest.fixture(autouse=True)
def _unfused() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


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


def test_widths_cost_what_pytorch_counts_whoever_is_pruned() -> None:
    """Convolutions: transposed, in groups, for each channel, over two axes; and heads of attention."""
    torch.manual_seed(0)
    for name in ("Unet", "Grouped", "DepthwiseSeparable", "HeadsByView", "GroupedQueries", "Crnn"):
        case = WIDTH_CASES[name]
        model, batch = case.build().eval(), case.batch(2, 6)
        structure = reprune.torch.inspect(model, [batch], scope="all").structure
        cost = CostModel(structure)
        for plan in random_plans(structure, 2):
            small = reprune.torch.apply(model, plan)
            assert cost("macs", plan.counts()) * structure.steps == pytest.approx(counted(small, batch))
    # The stem of the last one: 4 filters of 9 taps at 8 bands of every frame.
    assert cost.layer_macs("features.0:channels", structure.counts()) == 4 * 9 * 8


def test_a_bilinear_map_multiplies_every_pair_of_units_for_each_output() -> None:
    case = CASES["Bilinear"]
    structure = reprune.torch.inspect(case.build().eval(), [case.batch(3, 6)]).structure
    counts = {"one:l0": 5, "two:l0": 3}
    recurrent = sum(4 * units * (5 + units) for units in counts.values())
    assert CostModel(structure)("macs", counts) == recurrent + 3 * 5 * 3
