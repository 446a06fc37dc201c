"""The verbs, and what is PyTorch's own: training-time pruning, ragged modules, declared cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reprune.torch import adapter as _adapter
from reprune.torch.calibration.responses import gather, observe
from reprune.torch.export.plain import plain
from reprune.torch.ragged.modules import RaggedGRU, RaggedLSTM, RaggedRNN
from reprune.torch.tracing.cells import register_cell
from reprune.torch.tracing.record import trace
from reprune.torch.training.fake_quantise import fake_quantise
from reprune.torch.training.pruner import Pruner
from reprune.verbs import (
    Calibration,
    Inspection,
    Result,
    apply,
    calibrate,
    distill,
    inspect,
    load,
    mask,
    measure_latency,
    plan,
    prune,
)

if TYPE_CHECKING:
    from reprune.verbs.adapter import Adapter

    _: Adapter = _adapter

__all__ = [
    "Calibration",
    "Inspection",
    "Pruner",
    "RaggedGRU",
    "RaggedLSTM",
    "RaggedRNN",
    "Result",
    "apply",
    "calibrate",
    "distill",
    "fake_quantise",
    "gather",
    "inspect",
    "load",
    "mask",
    "measure_latency",
    "observe",
    "plain",
    "plan",
    "prune",
    "register_cell",
    "trace",
]
