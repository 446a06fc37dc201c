"""What `prune` returns, and how it is kept on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from reprune.core.answers.answers import Fidelity
from reprune.core.plan import Plan
from reprune.core.saving.saving import REPORT, WEIGHTS, read_folder, write_folder
from reprune.report import render_table, write_report
from reprune.report.overview import overview
from reprune.verbs.adapter import adapter_of

Model = TypeVar("Model")


@dataclass(frozen=True)
class Result(Generic[Model]):
    """A pruned model and the plan it was made by.

    Attributes:
        model: The smaller model, called as the original is.
        plan: Which units stayed.
        fidelity: How near its answers were to the dense model's when it was made; None where nothing can be compared.

    Example:
        >>> result = reprune.prune(model, batches, ratio=0.5)   # doctest: +SKIP
        >>> print(result)                                       # doctest: +SKIP
        >>> result.save("out/")                                 # doctest: +SKIP
    """

    model: Model
    plan: Plan
    fidelity: Fidelity | None = None

    def __repr__(self) -> str:
        return f"Result({type(self.model).__name__}, {self.plan!r})"

    def __str__(self) -> str:
        return render_table(self.plan, fidelity=self.fidelity)

    def to_dict(self) -> dict[str, Any]:
        """What was removed, as plain data: units of every layer and the whole model's numbers, before and after."""
        numbers = overview(self.plan)
        return {
            "method": self.plan.method,
            "ratio": self.plan.ratio,
            "of": self.plan.of,
            "layers": {row.name: [row.units.before, row.units.after] for row in numbers.layers},
            **{
                name: [_plain(change.before), _plain(change.after)]
                for name, change in (
                    ("units", numbers.units),
                    ("parameters", numbers.parameters),
                    ("macs", numbers.macs),
                )
            },
            "fidelity": None if self.fidelity is None else asdict(self.fidelity),
        }

    def _repr_html_(self) -> str:
        return self.plan._repr_html_()

    def save(self, directory: str | Path, summary: dict[str, Any] | None = None) -> None:
        """Write `model.safetensors`, `plan.json` and `report.html` into a directory, made if need be.

        A Keras model can be kept whole in Keras's own format instead: `result.model.save("small.keras")`.

        Args:
            directory: Where to write; files of these names are replaced.
            summary: Metrics before and after, for the report (see `report.write_report`).

        Raises:
            PlanError: When the model has weights that `load` would refuse: NaN, or other types than floating point.
            SaveError: When the directory cannot be written, or another process is writing there. What it held is then
                as it was.
        """
        adapter = adapter_of(self.model)
        model = adapter.checked(self.model)
        write_folder(
            Path(directory),
            self.plan,
            {
                WEIGHTS: lambda path: adapter.save_weights(model, self.plan, path),
                REPORT: lambda path: write_report(path, self.plan, summary, self.fidelity),
            },
        )


def _plain(value: float) -> float:
    """A count as the whole number that it is; MACs per step may be a fraction."""
    return int(value) if value == int(value) else value


def load(dense_model: Model, directory: str | Path) -> Model:
    """Read a pruned model back from the folder that `Result.save` wrote.

    Args:
        dense_model: The model as it was built before pruning, whatever its weights; it is left as it was.
        directory: The folder.

    Returns:
        The pruned model. In PyTorch its weights have the precision that they were saved in.

    Raises:
        PlanError: When a file is missing or damaged, or belongs to another model.

    Example:
        >>> small = reprune.load(Tagger(), "small")     # doctest: +SKIP
    """
    adapter = adapter_of(dense_model)
    dense = adapter.checked(dense_model)
    small: Model = read_folder(
        directory, lambda plan, path, sealed: adapter.load_pruned(dense, plan, path, sealed=sealed)
    )
    return small
