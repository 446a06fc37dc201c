"""What `prune` returns, and how it is kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from reprune.core.errors import PlanError
from reprune.core.plan import Plan
from reprune.report import render_table, write_report
from reprune.torch.apply import apply, named_tensors

WEIGHTS, PLAN, REPORT = "model.safetensors", "plan.json", "report.html"


@dataclass(frozen=True)
class Result:
    """A pruned model and the plan it was made by.

    Attributes:
        model: The smaller model, called as the original is.
        plan: Which units stayed.

    Example:
        >>> result = reprune.prune(model, batches, ratio=0.5)   # doctest: +SKIP
        >>> print(result)                                       # doctest: +SKIP
        >>> result.save("out/")                                 # doctest: +SKIP
    """

    model: nn.Module
    plan: Plan

    def __str__(self) -> str:
        return render_table(self.plan)

    def save(self, directory: str | Path, summary: dict[str, Any] | None = None) -> None:
        """Write `model.safetensors`, `plan.json` and `report.html` into a directory, made if need be.

        Args:
            directory: Where to write; files of these names are replaced.
            summary: Metrics before and after, for the report (see `report.write_report`).
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{WEIGHTS}.partial"
        safetensors.torch.save_model(self.model, str(partial))
        partial.replace(folder / WEIGHTS)
        (folder / PLAN).write_text(self.plan.to_json(), encoding="utf-8")
        write_report(folder / REPORT, self.plan, summary)


def load(dense_model: nn.Module, directory: str | Path) -> nn.Module:
    """A pruned model from the files of `Result.save` and a freshly built dense one, which is left as it was.

    Raises:
        PlanError: When a file is missing or damaged, or belongs to another model.
    """
    folder = Path(directory)
    for name in (PLAN, WEIGHTS):
        if not (folder / name).is_file():
            raise PlanError(f"{folder / name} does not exist: give the directory that Result.save() wrote.")
    plan = Plan.from_json((folder / PLAN).read_bytes())
    small = apply(dense_model, plan)
    _load_weights(small, folder / WEIGHTS)
    return small


def _load_weights(model: nn.Module, path: Path) -> None:
    expected = named_tensors(model)
    try:
        found = safetensors.torch.load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise PlanError(f"{path} cannot be read ({error}): it is damaged, or not a safetensors file.") from error
    for name, tensor in found.items():
        if name in expected and tensor.shape != expected[name].shape:
            raise PlanError(
                f"{path}: {name!r} has shape {tuple(tensor.shape)}, the plan beside it gives "
                f"{tuple(expected[name].shape)}: the two files do not belong together."
            )
    missing, unexpected = model.load_state_dict(found, strict=False)
    # Tied tensors are stored once: another name of the same tensor is enough.
    state = model.state_dict(keep_vars=True)
    held = {id(state[name]) for name in found if name in state}
    missing = [name for name in missing if id(state[name]) not in held]
    if missing or unexpected:
        raise PlanError(
            f"{path} belongs to another model: missing {missing or 'none'}, not known {unexpected or 'none'}."
        )
