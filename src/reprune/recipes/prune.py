"""Pruning a trained model from the command line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import is_tensor, nn

import reprune.torch as verbs
from reprune.core.budget import Request
from reprune.core.errors import RepruneError
from reprune.core.latency import LatencyTable
from reprune.core.passes import first_batch


@dataclass(frozen=True)
class Timing:
    """How latency is measured, where the budget needs it.

    Attributes:
        example: Input whose latency counts; the first batch when None.
        runtime: See `reprune.torch.measure_latency`.
        threads: Threads that it may use.
        table: File of measured times: read if it exists, else written.
    """

    example: Any = None
    runtime: str = "torch"
    threads: int = 1
    table: Path | None = None

    def measure(self, model: nn.Module, first: Any) -> LatencyTable:
        """The table that the file holds, or one measured now."""
        if self.table is not None and self.table.exists():
            return LatencyTable.read(self.table)
        example = first if self.example is None else self.example
        measured = verbs.measure_latency(model, example, runtime=self.runtime, threads=self.threads)
        if self.table is not None:
            try:
                self.table.parent.mkdir(parents=True, exist_ok=True)
                self.table.write_text(measured.to_json(), encoding="utf-8")
            except OSError as error:
                raise RepruneError(f"--latency-table {self.table} cannot be written: {error.strerror}.") from None
        return measured


def prune_to(
    out: Path,
    model: nn.Module,
    batches: Iterable[Any],
    *,
    weights: Path | None = None,
    timing: Timing = Timing(),
    **options: Any,
) -> str:
    """Prune a model and write the result into a folder.

    Args:
        out: Folder for `model.safetensors`, `plan.json` and `report.html`.
        model: The dense model.
        batches: Calibration inputs.
        weights: The model's trained weights, unless it has them.
        timing: How latency is measured, if the options ask for it.
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
    asked = Request(**{name: options[name] for name in Request.__dataclass_fields__ if name in options})
    model = model.eval()
    table = None
    if asked.needs_table:
        first, everything = first_batch(batches, is_tensor)
        table = timing.measure(model, first)
        batches = everything if iter(batches) is batches else batches
    result = verbs.prune(model, batches, latency=table, **options)
    result.save(out)
    return f"{result}\n\nWritten to {out}: model.safetensors, plan.json, report.html"
