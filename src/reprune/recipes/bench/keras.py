"""What `bench` asks of Keras models: an input, an exported file, and how many MACs it takes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from reprune.core.budget.cost import CostModel
from reprune.core.errors import RepruneError
from reprune.core.exporting import ExportError
from reprune.keras.export.formats import export
from reprune.keras.tracing.record import trace

__all__ = ["count_macs", "export", "random_input", "size"]


def random_input(model: Any, batch: int, frames: int, features: int | None) -> Any:
    """An input as the model declares it, its free sizes being batch and frames.

    Raises:
        RepruneError: When the model declares nothing.
    """
    try:
        inputs = keras.tree.flatten(model.inputs)
    except (AttributeError, ValueError):
        inputs = []
    if len(inputs) != 1:
        raise RepruneError(f"{model.name} does not declare one input: give --example.")
    declared = tuple(inputs[0].shape)[1:]
    shape = [frames if size is None else size for size in declared]
    if features is not None and len(shape) == 2:
        shape[1] = features
    rng = np.random.default_rng(0)
    if keras.backend.is_int_dtype(inputs[0].dtype):
        return rng.integers(0, 2, (batch, *shape)).astype(inputs[0].dtype)
    return rng.standard_normal((batch, *shape)).astype(inputs[0].dtype)


def size(model: Any) -> float:
    """Keras models are measured where they are deployed, not in PyTorch."""
    raise ExportError(f"{model.name} is a Keras model: measure it in onnxruntime or litert.")


def count_macs(model: Any, example: Any) -> float:
    """Multiply-accumulates of all products with weights in one call of the model.

    Raises:
        RepruneError: When the model does not take the example.
    """
    try:
        structure = trace(model, example)
    except (RuntimeError, TypeError, ValueError) as error:
        raise RepruneError(f"{model.name} does not take this input: {error}. Give --example.") from error
    return CostModel(structure)("macs", structure.counts()) * structure.steps
