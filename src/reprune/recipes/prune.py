"""Pruning a trained model from the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import reprune
from reprune.core.budget.budget import Request
from reprune.core.budget.latency import LatencyTable
from reprune.core.errors import RepruneError
from reprune.core.evidence.passes import first_batch
from reprune.core.layers import Scope
from reprune.core.saving.files import replacing
from reprune.recipes.run.interrupts import InterruptedRunError
from reprune.report import check_installed


@dataclass(frozen=True)
class Timing:
    """How latency is measured, where the budget needs it.

    Attributes:
        example: Input whose latency counts; the first batch when None.
        runtime: See `measure_latency` of the model's framework, whose default holds when None.
        threads: Threads that it may use.
        table: File of measured times: read if it exists, else written.
    """

    example: Any = None
    runtime: str | None = None
    threads: int = 1
    table: Path | None = None

    def measure(self, model: Any, first: Any, scope: Scope = "recurrent") -> LatencyTable:
        """The table that the file holds, or one measured now."""
        if self.table is not None and self.table.exists():
            return LatencyTable.read(self.table)
        example = first if self.example is None else self.example
        structure = reprune.inspect(model, [example], scope=scope).structure
        measured = reprune.measure_latency(
            model, example, runtime=self.runtime, threads=self.threads, structure=structure
        )
        if self.table is not None:
            try:
                with replacing(self.table) as part:
                    part.write_text(measured.to_json(), encoding="utf-8")
            except OSError as error:
                raise RepruneError(f"--latency-table {self.table} cannot be written: {error.strerror}.") from None
        return measured


def prune_to(
    out: Path,
    model: Any,
    batches: Iterable[Any],
    *,
    weights: Path | None = None,
    timing: Timing = Timing(),
    distill_steps: int = 0,
    **options: Any,
) -> reprune.Result[Any]:
    """Prune a model and write the result into a folder.

    Args:
        out: Folder for `model.safetensors`, `plan.json` and `report.html`.
        model: The dense model, of PyTorch or Keras.
        batches: Calibration inputs.
        weights: The model's trained weights, unless it has them.
        timing: How latency is measured, if the options ask for it.
        distill_steps: Steps of `reprune.distill` afterwards.
        options: Options of `reprune.prune`.

    Returns:
        The result, as it was written.

    Raises:
        RepruneError: The weights do not fit the model, or the folder cannot be written.
    """
    check_installed()
    asked = Request(**{name: options[name] for name in Request.__dataclass_fields__ if name in options})
    keras = sys.modules.get("keras")
    is_keras = keras is not None and isinstance(model, keras.Model)
    if weights is not None:
        try:
            (_load_keras if is_keras else _load_torch)(model, weights)
        except Exception as error:
            # Each framework and each format has its own errors for a file that is damaged or of another model.
            said = " ".join(str(error).split()).rstrip(".")
            raise RepruneError(f"{weights} does not hold the weights of {type(model).__name__}: {said}.") from None
    if not is_keras and hasattr(model, "eval"):
        model.eval()
    table = None
    if asked.needs_table:
        first, everything = first_batch(batches, lambda value: hasattr(value, "shape"))
        table = timing.measure(model, first, options.get("scope", "recurrent"))
        batches = everything if isinstance(batches, Iterator) else batches
    result = reprune.prune(model, batches, latency=table, **options)
    result.save(out)
    if distill_steps:
        # What was pruned is kept already: from here on, an interruption loses no more than what was learned.
        try:
            reprune.distill(result.model, model, batches, distill_steps)
            result.save(out)
        except KeyboardInterrupt:
            raise InterruptedRunError(
                f"Stopped: {out} keeps the pruned model, not distilled. The same command starts anew."
            ) from None
    return result


def _load_torch(model: Any, path: Path) -> None:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state: Mapping[str, Any] = load_file(path)
    elif path.suffix in (".pt", ".pth", ".bin"):
        state = _saved_by_torch(path, model)
    else:
        raise ValueError(
            f"{path.suffix or 'a file without ending'} is no format of weights that is known here; give "
            ".safetensors, or .pt with a state dict"
        )
    found, own = model.load_state_dict(state, strict=False), model.state_dict(keep_vars=True)
    # Of tied weights, safetensors keeps one.
    held = {id(value) for name, value in own.items() if name in state}
    missing = [name for name in found.missing_keys if id(own.get(name)) not in held]
    for names, said in ((missing, "it lacks"), (found.unexpected_keys, "the model has nothing called")):
        if names:
            raise ValueError(f"{said} {', '.join(names[:4])}" + f" and {len(names) - 4} more" * (len(names) > 4))


def _saved_by_torch(path: Path, model: Any) -> Mapping[str, Any]:
    """The state dict of a file, or the one in a checkpoint that holds most of the model's names."""
    import torch

    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ValueError(
            "it is no file of tensors alone; what else is pickled is not opened, as that can run any code. Save the "
            "weights: torch.save(model.state_dict(), 'weights.pt')"
        ) from None
    wanted = set(model.state_dict())
    inside = [saved, *(saved.values() if isinstance(saved, Mapping) else ())]
    return max(
        (each for each in inside if isinstance(each, Mapping)), key=lambda each: len(wanted & set(each)), default={}
    )


def _load_keras(model: Any, path: Path) -> None:
    from safetensors.numpy import load_file

    from reprune.keras.tracing.graph import graph_of

    if path.suffix != ".safetensors":
        model.load_weights(str(path))
        return
    found, named = load_file(str(path)), graph_of(model).weights()
    if set(found) != set(named):
        raise ValueError(f"it holds {', '.join(sorted(set(found) ^ set(named)))} or lacks them")
    for name, variable in named.items():
        variable.assign(found[name])
