"""reprune: structured pruning for recurrent networks.

    result = reprune.prune(model, batches, ratio=0.5)
    result.model        # an ordinary, smaller model

The verbs work on PyTorch and Keras models alike; importing reprune imports neither.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from typing import Any

from reprune.core.errors import (
    BudgetError,
    PlanError,
    RecipeError,
    RecordError,
    RepruneError,
    StatisticsError,
    UnsupportedModelError,
    VerificationError,
    keras_2_error,
)
from reprune.core.latency import LatencyTable
from reprune.core.methods import Method
from reprune.core.plan import Plan

__version__ = version("reprune")

__all__ = [
    "BudgetError",
    "LatencyTable",
    "Method",
    "Plan",
    "PlanError",
    "RecipeError",
    "RecordError",
    "RepruneError",
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


def prune(model: Any, batches: Any, ratio: float = 0.5, **options: Any) -> Any:
    """Decide which hidden units go and return a smaller model. See `reprune.torch.prune` for the options.

    Example:
        >>> result = reprune.prune(model, batches, ratio=0.5)      # doctest: +SKIP
        >>> print(result)                                          # doctest: +SKIP
    """
    return _adapter(model).prune(model, batches, ratio, **options)


def plan(model: Any, batches: Any, ratio: float = 0.5, **options: Any) -> Plan:
    """Decide which hidden units go. See `reprune.torch.plan` for the options."""
    decided: Plan = _adapter(model).plan(model, batches, ratio, **options)
    return decided


def calibrate(model: Any, batches: Any, **options: Any) -> Any:
    """Observe a model once, for any number of plans. See `reprune.torch.calibrate` for the options.

    Example:
        >>> calibration = reprune.calibrate(model, batches)                    # doctest: +SKIP
        >>> results = [calibration.prune(ratio) for ratio in (0.25, 0.5)]      # doctest: +SKIP
    """
    return _adapter(model).calibrate(model, batches, **options)


def apply(model: Any, plan: Plan) -> Any:
    """A new, smaller model without the units that the plan removes; the original is left as it was."""
    return _adapter(model).apply(model, plan)


def mask(model: Any, plan: Plan) -> Any:
    """A full-size copy in which nothing reads the units that the plan removes."""
    return _adapter(model).mask(model, plan)


def measure_latency(model: Any, example: Any, **options: Any) -> Any:
    """Measure layer sizes on this machine, for plans with `of="latency"`. See `reprune.torch.measure_latency`.

    Example:
        >>> table = reprune.measure_latency(model, example, runtime="onnxruntime")                  # doctest: +SKIP
        >>> result = reprune.prune(model, batches, of="latency", target_ms=20, latency=table)       # doctest: +SKIP
    """
    return _adapter(model).measure_latency(model, example, **options)


def distill(small: Any, dense: Any, batches: Any, steps: int = 400, **options: Any) -> Any:
    """Train a pruned model in place, without labels, to answer what the dense one does. See `reprune.torch.distill`.

    Example:
        >>> result = reprune.prune(model, batches, ratio=0.75)            # doctest: +SKIP
        >>> reprune.distill(result.model, model, batches, steps=400)      # doctest: +SKIP
    """
    return _adapter(dense).distill(small, dense, batches, steps, **options)


def inspect(model: Any, batches: Any, **options: Any) -> Any:
    """What can be pruned, what must stay and why. See `reprune.torch.inspect` for the options."""
    return _adapter(model).inspect(model, batches, **options)


def load(dense_model: Any, directory: Any) -> Any:
    """A pruned model from the files of `Result.save` and a freshly built dense one."""
    return _adapter(dense_model).load(dense_model, directory)


def export(model: Any, example: Any, path: Any, **options: Any) -> Any:
    """Write a model to a file of a runtime (`.onnx`, `.tflite`, `.pte`, `.pt2`), run it there and compare the outputs.

    Example:
        >>> print(reprune.export(small, example, "small.onnx"))     # doctest: +SKIP
    """
    adapter = importlib.import_module(f"{_adapter(model).__name__}.export")
    return adapter.export(model, example, path, **options)


def _adapter(model: Any) -> Any:
    """The module with the verbs of the model's framework, which is already imported if there is a model of it."""
    keras = sys.modules.get("keras")
    # First, because on Keras's PyTorch backend a Keras model is a torch.nn.Module as well.
    if keras is not None and isinstance(model, keras.Model):
        # Under Keras 2, importing it raises the error that says so.
        return importlib.import_module("reprune.keras")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        return importlib.import_module("reprune.torch")
    name = f"{type(model).__module__}.{type(model).__name__}"
    if name.startswith("tf_keras."):
        raise keras_2_error(name)
    raise UnsupportedModelError(f"{name} is neither a torch.nn.Module nor a keras.Model.")
