"""A comparison of methods as a Markdown table, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite


@dataclass(frozen=True)
class Cell:
    """One measured model.

    Attributes:
        method: The method, or `dense`.
        ratio: Fraction that was to be removed; 0 for the dense model.
        steps: Fine-tuning steps after pruning.
        metric: What the evaluation said.
        units: Units of the prunable layers.
        parameters: Parameters of the model.
        macs: Multiply-accumulates per time step.
        seconds: Time that pruning or fine-tuning took.
        divergence: How far the answers are from the dense model's on calibration batches (`Fidelity.divergence`),
            before any fine-tuning; None where that is unknown.

    Example:
        >>> Cell("iss-gm", 0.5, 0, 0.91, 32, 1000, 800.0, 0.2).is_dense
        False
    """

    method: str
    ratio: float
    steps: int
    metric: float
    units: int
    parameters: int
    macs: float
    seconds: float
    divergence: float | None = None

    @property
    def is_dense(self) -> bool:
        """Whether it is the model before pruning."""
        return self.method == "dense"


def markdown(cells: Sequence[Cell]) -> str:
    """A row per method (and number of fine-tuning steps), a column per ratio, the best of each column in bold.

    What the models' answers are worth beside the dense model's comes last, where it was measured. Large metrics are
    taken to be good if pruning lowers the metric on the whole.

    Example:
        >>> dense, half = Cell("dense", 0.0, 0, 0.97, 64, 10, 9.0, 0.0), Cell("iss-gm", 0.5, 0, 0.91, 32, 5, 4.0, 0.1)
        >>> print(markdown([dense, half, Cell("random", 0.5, 0, 0.85, 32, 5, 4.0, 0.1)]))
        | method | 50% |
        |---|---:|
        | dense | 0.97 |
        | iss-gm | **0.91** |
        | random | 0.85 |
        <BLANKLINE>
    """
    best = max if _higher_is_better(cells) else min
    text = _table("method", cells, {_key(cell): cell.metric for cell in cells}, best)
    judged = [cell for cell in cells if cell.divergence is not None and not cell.steps]
    if judged:
        text += "\n" + _table("divergence from dense", judged, {_key(c): c.divergence or 0.0 for c in judged}, min)
    return text


Key = tuple[str, int, float]


def _key(cell: Cell) -> Key:
    return cell.method, cell.steps, cell.ratio


def _higher_is_better(cells: Sequence[Cell]) -> bool:
    dense = [cell.metric for cell in cells if cell.is_dense]
    pruned = [cell.metric for cell in cells if not cell.is_dense]
    return not dense or sum(value <= dense[0] for value in pruned) * 2 >= len(pruned)


def _table(
    corner: str, cells: Sequence[Cell], found: Mapping[Key, float], best: Callable[[Iterable[float]], float]
) -> str:
    ratios = sorted({cell.ratio for cell in cells if not cell.is_dense})
    marked = {}
    for ratio in ratios:
        column = {value for (method, _, of), value in found.items() if of == ratio and method != "dense"}
        marked[ratio] = best(column) if len(column) > 1 else None

    def text(method: str, steps: int, ratio: float) -> str:
        # The dense model has one value, which stands beside all ratios.
        value = found.get((method, steps, 0.0 if method == "dense" else ratio))
        if value is None:
            return ""
        return f"**{value:.4g}**" if value == marked[ratio] and method != "dense" else f"{value:.4g}"

    lines = [
        f"| {corner} | {' | '.join(f'{100 * ratio:.4g}%' for ratio in ratios)} |",
        f"|---|{'---:|' * len(ratios)}",
    ]
    for method, steps in dict.fromkeys((cell.method, cell.steps) for cell in cells):
        label = f"{method}, {steps} steps" if steps else method
        lines.append(f"| {label} | {' | '.join(text(method, steps, ratio) for ratio in ratios)} |")
    return "\n".join(lines) + "\n"


def csv_text(cells: Sequence[Cell]) -> str:
    """One line per cell, after a line of column names."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [entry.name for entry in fields(Cell)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(cell) for cell in cells)
    return out.getvalue()


def json_text(cells: Sequence[Cell]) -> str:
    """All cells as a JSON array; what is no finite number is null, as JSON has none such."""
    rows = [
        {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in asdict(c).items()}
        for c in cells
    ]
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"
