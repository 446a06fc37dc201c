"""The verbs, and what is Keras's own: training-time pruning, files of Keras 2, ragged directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras

from reprune.core.errors import keras_2_error

if int(keras.__version__.split(".")[0]) < 3:
    # Before the modules below stumble over what it does not have.
    raise keras_2_error(f"keras {keras.__version__}")

from reprune.keras import adapter as _adapter
from reprune.keras.calibration.responses import observe
from reprune.keras.legacy import load_model
from reprune.keras.surgery.ragged import RaggedBidirectional
from reprune.keras.tracing.record import trace
from reprune.keras.training.callback import PruningCallback
from reprune.keras.training.pruner import Pruner
from reprune.keras.training.taught import Taught
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
    "PruningCallback",
    "RaggedBidirectional",
    "Result",
    "Taught",
    "apply",
    "calibrate",
    "distill",
    "inspect",
    "load",
    "load_model",
    "mask",
    "measure_latency",
    "observe",
    "plan",
    "prune",
    "trace",
]
