"""Pruning a trained model from the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import reprune
from reprune.core.errors import RepruneError


def prune_to(out: Path, model: Any, batches: Iterable[Any], *, weights: Path | None = None, **options: Any) -> str:
    """Prune a model and write the result into a folder.

    Args:
        out: Folder for `model.safetensors`, `plan.json` and `report.html`.
        model: The dense model, of PyTorch or Keras.
        batches: Calibration inputs.
        weights: The model's trained weights, unless it has them.
        options: Options of `reprune.prune`.

    Returns:
        The table of what was removed, and where the result is.

    Raises:
        RepruneError: The weights do not fit the model, or the folder cannot be written.
    """
    keras = sys.modules.get("keras")
    is_keras = keras is not None and isinstance(model, keras.Model)
    if weights is not None:
        try:
            (_load_keras if is_keras else _load_torch)(model, weights)
        except Exception as error:
            # Each framework and each format has its own errors for a file that is damaged or of another model.
            raise RepruneError(f"{weights} does not hold the weights of {type(model).__name__}: {error}") from None
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RepruneError(f"--out {out} cannot be written: {error.strerror}. Give a folder that can.") from None
    result = reprune.prune(model if is_keras else model.eval(), batches, **options)
    result.save(out)
    return f"{result}\n\nWritten to {out}: model.safetensors, plan.json, report.html"


def _load_torch(model: Any, path: Path) -> None:
    from safetensors.torch import load_model

    load_model(model, str(path))


def _load_keras(model: Any, path: Path) -> None:
    from safetensors.numpy import load_file

    from reprune.keras.graph import graph_of

    if path.suffix != ".safetensors":
        model.load_weights(str(path))
        return
    found, named = load_file(str(path)), graph_of(model).weights()
    if set(found) != set(named):
        raise ValueError(f"it holds {', '.join(sorted(set(found) ^ set(named)))} or lacks them")
    for name, variable in named.items():
        variable.assign(found[name])
