"""Pruning a trained model from the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

import reprune.torch as verbs
from reprune.core.errors import RepruneError


def prune_to(
    out: Path,
    model: nn.Module,
    batches: Iterable[Any],
    *,
    weights: Path | None = None,
    distill_steps: int = 0,
    **options: Any,
) -> str:
    """Prune a model and write the result into a folder.

    Args:
        out: Folder for `model.safetensors`, `plan.json` and `report.html`.
        model: The dense model.
        batches: Calibration inputs.
        weights: The model's trained weights, unless it has them.
        distill_steps: Steps of `reprune.torch.distill` before it is written.
        options: Options of `reprune.torch.prune`.

    Returns:
        The table of what was removed, and where the result is.

    Raises:
        RepruneError: The weights do not fit the model, or the folder cannot be written.
    """
    if weights is not None:
        try:
            load_model(model, str(weights))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise RepruneError(f"{weights} does not hold the weights of {type(model).__name__}: {error}") from None
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RepruneError(f"--out {out} cannot be written: {error.strerror}. Give a folder that can.") from None
    result = verbs.prune(model.eval(), batches, **options)
    result.save(out)
    if distill_steps:
        # What was pruned is kept already: from here on, an interruption loses no more than what was learned.
        with Progress(transient=True) as bar:
            task = bar.add_task("distilling", total=distill_steps)
            verbs.distill(
                result.model, model, batches, distill_steps, progress=lambda step, _: bar.update(task, completed=step)
            )
        result.save(out)
    return f"{result}\n\nWritten to {out}: model.safetensors, plan.json, report.html"
