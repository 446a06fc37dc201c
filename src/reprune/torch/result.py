"""What `prune` returns, and how it is kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from reprune.core.plan import Plan
from reprune.core.saving import REPORT, check_tensors, check_values, read_folder, unreadable, write_folder
from reprune.report import render_table, write_report
from reprune.torch.surgery.apply import apply

PRECISIONS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


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
        write_folder(folder, self.plan, lambda path: safetensors.torch.save_model(self.model, path))
        write_report(folder / REPORT, self.plan, summary)


def load(dense_model: nn.Module, directory: str | Path) -> nn.Module:
    """A pruned model from the files of `Result.save` and a freshly built dense one, which is left as it was.

    Weights have the precision they were saved in.

    Raises:
        PlanError: When a file is missing or damaged, or belongs to another model.
    """
    plan, weights = read_folder(directory)
    small = apply(dense_model, plan)
    load_weights(small, weights)
    return small


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a safetensors file; every tensor is checked before the first one is changed.

    Raises:
        PlanError: When the file is damaged or belongs to another model.
    """
    try:
        found = safetensors.torch.load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error) from error
    state = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    # Tied tensors are stored once: another name of the same tensor is enough.
    held = {id(state[name]) for name in found if name in state}
    missing = [name for name, tensor in state.items() if id(tensor) not in held]
    shapes, expected = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (found, state))
    check_tensors(path, shapes, expected, missing)
    for name, tensor in found.items():
        mine = state[name]
        fits = tensor.dtype in (PRECISIONS if mine.is_floating_point() else {mine.dtype})
        # A buffer may hold anything; a weight that is no number makes the whole model useless.
        finite = not fits or not isinstance(mine, nn.Parameter) or not bool(tensor.isnan().any())
        check_values(path, name, tensor.dtype, mine.dtype, fits=fits, finite=finite)
    for name, tensor in found.items():
        # In place, so that tied modules and the lists that recurrent modules keep go on sharing it.
        state[name].data = tensor.to(state[name].device)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
