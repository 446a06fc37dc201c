"""reprune: structured pruning for recurrent networks.

    result = reprune.prune(model, batches, ratio=0.5)
    result.model        # an ordinary, smaller model

The verbs work on PyTorch and Keras models alike; importing reprune imports neither.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from reprune.core.budget.latency import LatencyTable
from reprune.core.errors import (
    BatchError,
    BatchWarning,
    BudgetError,
    CalibrationWarning,
    InternalError,
    PlanError,
    PlanWarning,
    RecipeError,
    RecordError,
    RepruneError,
    SaveError,
    StatisticsError,
    UnsupportedModelError,
    VerificationError,
)
from reprune.core.exporting import Comparison, ExportError, ExportReport
from reprune.core.extras import imported as _imported
from reprune.core.methods import Method
from reprune.core.plan import Plan
from reprune.verbs import (
    Calibration,
    Inspection,
    Result,
    apply,
    calibrate,
    distill,
    export,
    inspect,
    load,
    mask,
    measure_latency,
    plan,
    prune,
)

if TYPE_CHECKING:
    from reprune import keras as keras
    from reprune import torch as torch
    from reprune import youtube8m as youtube8m

try:
    __version__ = version("reprune")
except PackageNotFoundError:
    # A source tree that was never installed, such as one on PYTHONPATH.
    __version__ = "0+source"
_LAZY = ("keras", "torch", "youtube8m")

__all__ = [
    "BatchError",
    "BatchWarning",
    "BudgetError",
    "Calibration",
    "CalibrationWarning",
    "Comparison",
    "ExportError",
    "ExportReport",
    "Inspection",
    "InternalError",
    "LatencyTable",
    "Method",
    "Plan",
    "PlanError",
    "PlanWarning",
    "RecipeError",
    "RecordError",
    "RepruneError",
    "Result",
    "SaveError",
    "StatisticsError",
    "UnsupportedModelError",
    "VerificationError",
    "apply",
    "calibrate",
    "distill",
    "export",
    "inspect",
    "load",
    "mask",
    "measure_latency",
    "plan",
    "prune",
]


def __getattr__(name: str) -> Any:
    """`reprune.torch`, `reprune.keras` and `reprune.youtube8m` are imported when they are first asked for."""
    if name in _LAZY:
        return _imported(f"reprune.{name}")
    raise AttributeError(f"module 'reprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
