"""What `prune` returns, and how it is kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy
from safetensors import SafetensorError

from reprune.core.errors import PlanError
from reprune.core.plan import Plan
from reprune.keras.apply import apply
from reprune.keras.graph import array, graph_of
from reprune.report import render_table, write_report

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
        folder.mkdir(parents=True, exist_ok=True)
        weights = graph_of(self.model).weights().values()
        # In the order of the plan's weights, under the plan's names: those of the layers are made up anew elsewhere.
        named = {name: array(weight) for name, weight in zip(self.plan.structure.shapes, weights, strict=True)}
        partial = folder / f"{WEIGHTS}.partial"
        safetensors.numpy.save_file(named, str(partial))
        partial.replace(folder / WEIGHTS)
        (folder / PLAN).write_text(self.plan.to_json(), encoding="utf-8")
        write_report(folder / REPORT, self.plan, summary)


def load(dense_model: Any, directory: str | Path) -> Any:
    """A pruned model from the files of `Result.save` and a freshly built dense one, which is left as it was.

    Raises:
        PlanError: When a file is missing or damaged, or belongs to another model.
    """
    folder = Path(directory)
    for name in (PLAN, WEIGHTS):
        if not (folder / name).is_file():
            raise PlanError(f"{folder / name} does not exist: give the directory that Result.save() wrote.")
    plan = Plan.from_json((folder / PLAN).read_bytes())
    try:
        found = safetensors.numpy.load_file(str(folder / WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise PlanError(
            f"{folder / WEIGHTS} cannot be read ({error}): it is damaged, or not a safetensors file."
        ) from error
    small = apply(dense_model, plan)
    expected = dict(zip(plan.structure.shapes, graph_of(small).weights().values(), strict=True))
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unexpected:
        raise PlanError(
            f"{folder / WEIGHTS} belongs to another model: missing {missing or 'none'}, "
            f"not known {unexpected or 'none'}."
        )
    for name, weight in expected.items():
        if tuple(weight.shape) != found[name].shape:
            raise PlanError(
                f"{folder / WEIGHTS}: {name!r} has shape {found[name].shape}, the plan beside it gives "
                f"{tuple(weight.shape)}: the two files do not belong together."
            )
        weight.assign(found[name])
    return small
