"""A pruned model's weights on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from reprune.core.plan import Plan
from reprune.core.saving import check_tensors, check_values, unreadable
from reprune.keras.tracing.graph import array, graph_of


def save_weights(model: Any, plan: Plan, path: Path) -> None:
    """Write a model's weights as safetensors, under the plan's names: those of layers are made up anew elsewhere."""
    weights = graph_of(model).weights().values()
    named = {name: array(weight) for name, weight in zip(plan.structure.shapes, weights, strict=True)}
    safetensors.numpy.save_file(named, path)


def load_weights(model: Any, plan: Plan, path: Path) -> None:
    """Fill a model from a safetensors file; every tensor is checked before the first one is changed.

    Raises:
        PlanError: When the file is damaged or belongs to another model.
    """
    try:
        found = safetensors.numpy.load_file(str(path))
    except (SafetensorError, OSError, ValueError, AttributeError) as error:  # NumPy lacks some types.
        raise unreadable(path, error) from error
    mine = dict(zip(plan.structure.shapes, graph_of(model).weights().values(), strict=True))
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    check_tensors(path, shapes, {name: tuple(w.shape) for name, w in mine.items()}, set(mine) - set(found))
    for name, weight in mine.items():
        fits = _is_float(found[name].dtype) == keras.backend.is_float_dtype(weight.dtype)
        finite = not fits or not np.isnan(found[name].astype("float32")).any()
        check_values(path, name, found[name].dtype, weight.dtype, fits=fits, finite=finite)
    for name, weight in mine.items():
        weight.assign(found[name])


def _is_float(dtype: Any) -> bool:
    # bfloat16 is an extension of NumPy's types, of no kind of its own.
    return bool(dtype.kind == "f" or dtype.name == "bfloat16")
