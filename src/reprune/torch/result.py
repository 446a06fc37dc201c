"""What `prune` returns, and how it is kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from reprune.core.errors import PlanError
from reprune.core.plan import Plan
from reprune.report import render_table, write_report
from reprune.torch.apply import apply

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
        # Weights and plan belong together: both are complete on disk before either takes its place.
        weights, plan = folder / f"{WEIGHTS}.partial", folder / f"{PLAN}.partial"
        safetensors.torch.save_model(self.model, str(weights))
        plan.write_text(self.plan.to_json(), encoding="utf-8")
        weights.replace(folder / WEIGHTS)
        plan.replace(folder / PLAN)
        write_report(folder / REPORT, self.plan, summary)


def load(dense_model: nn.Module, directory: str | Path) -> nn.Module:
    """A pruned model from the files of `Result.save` and a freshly built dense one, which is left as it was.

    Weights have the precision they were saved in.

    Raises:
        PlanError: When a file is missing or damaged, or belongs to another model.
    """
    folder = Path(directory)
    for name in (PLAN, WEIGHTS):
        if not (folder / name).is_file():
            raise PlanError(f"{folder / name} does not exist: give the directory that Result.save() wrote.")
    plan = Plan.from_json((folder / PLAN).read_bytes())
    small = apply(dense_model, plan)
    load_weights(small, folder / WEIGHTS)
    return small


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a safetensors file; every tensor is checked before the first one is changed.

    Raises:
        PlanError: When the file is damaged or belongs to another model.
    """
    try:
        found = safetensors.torch.load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise PlanError(f"{path} cannot be read ({error}): it is damaged, or not a safetensors file.") from error
    state = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    # Tied tensors are stored once: another name of the same tensor is enough.
    held = {id(state[name]) for name in found if name in state}
    missing = [name for name, tensor in state.items() if id(tensor) not in held]
    unexpected = [name for name in found if name not in state]
    if missing or unexpected:
        raise PlanError(
            f"{path} belongs to another model: missing {missing or 'none'}, not known {unexpected or 'none'}."
        )
    for name, tensor in found.items():
        if tensor.shape != state[name].shape:
            raise PlanError(
                f"{path}: {name!r} has shape {tuple(tensor.shape)}, the plan beside it gives "
                f"{tuple(state[name].shape)}: the two files do not belong together."
            )
        if tensor.is_floating_point() != state[name].is_floating_point():
            raise PlanError(f"{path}: {name!r} holds {tensor.dtype}, the model {state[name].dtype}.")
    for name, tensor in found.items():
        # In place, so that tied modules and the lists that recurrent modules keep go on sharing it.
        state[name].data = tensor.to(state[name].device)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
