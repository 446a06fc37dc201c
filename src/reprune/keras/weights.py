"""A pruned model's weights on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from reprune.core.layers import Structure
from reprune.core.plan import Plan
from reprune.core.saving.digest import digest_of_arrays
from reprune.core.saving.saving import check_savable, check_tensors, check_values, unreadable
from reprune.keras.surgery.apply import rebuilt
from reprune.keras.surgery.rename import fitted
from reprune.keras.tracing.graph import array, graph_of


def save_weights(model: Any, plan: Plan, path: Path) -> None:
    """Write a model's weights as safetensors, under the plan's names: those of layers are made up anew elsewhere.

    Raises:
        PlanError: When a weight is one that `load_pruned` would refuse.
    """
    weights, shapes = graph_of(model).weights().values(), plan.small_shapes()
    named = {name: array(weight) for name, weight in zip(plan.structure.shapes, weights, strict=True)}
    for name, value in named.items():
        check_savable(name, value.dtype, value.shape, shapes[name], fits=True, finite=_finite(value))
    safetensors.numpy.save_file(named, path)


def load_pruned(dense: Any, plan: Plan, path: Path, *, sealed: bool) -> Any:
    """The smaller model that a plan makes of a dense one, with weights from a safetensors file.

    Raises:
        PlanError: When the file is damaged or belongs to another model.
    """
    try:
        found = safetensors.numpy.load_file(str(path))
    except (SafetensorError, OSError, ValueError, AttributeError) as error:  # NumPy lacks some types.
        raise unreadable(path, error) from error
    graph = graph_of(dense)
    renamed = fitted(plan, graph)
    expected = plan.small_shapes()
    check_tensors(path, {name: value.shape for name, value in found.items()}, expected, set(expected) - set(found))
    tensors = {}
    for name, (mine, weight) in zip(expected, graph.weights().items(), strict=True):
        value = found[name]
        fits = _is_float(value.dtype) == keras.backend.is_float_dtype(weight.dtype)
        check_values(path, name, value.dtype, weight.dtype, fits=fits, finite=sealed or not fits or _finite(value))
        tensors[mine] = value
    return rebuilt(dense, graph, renamed, renamed.counts(), tensors)


def _finite(value: Any) -> bool:
    return not _is_float(value.dtype) or not np.isnan(value.astype("float32")).any()


def digest(model: Any, structure: Structure) -> str:
    """The digest of a model's weights, in Keras's order: states that it keeps are none of these."""
    return digest_of_arrays(_widened(array(weight)) for weight in model.weights)


def _widened(value: Any) -> Any:
    return value.astype("float32") if value.dtype.itemsize < 4 and _is_float(value.dtype) else value


def _is_float(dtype: Any) -> bool:
    # bfloat16 is an extension of NumPy's types, of no kind of its own.
    return bool(dtype.kind == "f" or dtype.name == "bfloat16")
