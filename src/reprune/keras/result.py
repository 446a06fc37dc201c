"""What `prune` returns, and how it is kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from reprune.core.plan import Plan
from reprune.core.saving import REPORT, check_tensors, check_values, read_folder, unreadable, write_folder
from reprune.keras.surgery.apply import apply
from reprune.keras.tracing.graph import array, graph_of
from reprune.report import render_table, write_report


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

    model: Any
    plan: Plan

    def __str__(self) -> str:
        return render_table(self.plan)

    def save(self, directory: str | Path, summary: dict[str, Any] | None = None) -> None:
        """Write `model.safetensors`, `plan.json` and `report.html` into a directory, made if need be.

        `result.model.save("small.keras")` keeps the whole model in Keras's own format instead.

        Args:
            directory: Where to write; files of these names are replaced.
            summary: Metrics before and after, for the report (see `report.write_report`).
        """
        folder = Path(directory)
        weights = graph_of(self.model).weights().values()
        # In the order of the plan's weights, under the plan's names: those of the layers are made up anew elsewhere.
        named = {name: array(weight) for name, weight in zip(self.plan.structure.shapes, weights, strict=True)}
        write_folder(folder, self.plan, lambda path: safetensors.numpy.save_file(named, path))
        write_report(folder / REPORT, self.plan, summary)


def load(dense_model: Any, directory: str | Path) -> Any:
    """A pruned model from the files of `Result.save` and a freshly built dense one, which is left as it was.

    Raises:
        PlanError: When a file is missing or damaged, or belongs to another model.
    """
    plan, path = read_folder(directory)
    try:
        found = safetensors.numpy.load_file(str(path))
    except (SafetensorError, OSError, ValueError, AttributeError) as error:  # NumPy lacks some types.
        raise unreadable(path, error) from error
    small = apply(dense_model, plan)
    mine = dict(zip(plan.structure.shapes, graph_of(small).weights().values(), strict=True))
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    check_tensors(path, shapes, {name: tuple(w.shape) for name, w in mine.items()}, set(mine) - set(found))
    for name, weight in mine.items():
        fits = _is_float(found[name].dtype) == keras.backend.is_float_dtype(weight.dtype)
        finite = not fits or not np.isnan(found[name].astype("float32")).any()
        check_values(path, name, found[name].dtype, weight.dtype, fits=fits, finite=finite)
    for name, weight in mine.items():
        weight.assign(found[name])
    return small


def _is_float(dtype: Any) -> bool:
    # bfloat16 is an extension of NumPy's types, of no kind of its own.
    return bool(dtype.kind == "f" or dtype.name == "bfloat16")
