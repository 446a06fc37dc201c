"""A comparison of methods as a Markdown table, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
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

    @property
    def is_dense(self) -> bool:
        """Whether it is the model before pruning."""
        return self.method == "dense"


def markdown(cells: Sequence[Cell]) -> str:
    """A row per method (and number of fine-tuning steps), a column per ratio.

    Example:
        >>> dense, half = Cell("dense", 0.0, 0, 0.97, 64, 10, 9.0, 0.0), Cell("iss-gm", 0.5, 0, 0.91, 32, 5, 4.0, 0.1)
        >>> print(markdown([dense, half]))
        | method | 50% |
        |---|---:|
        | dense | 0.97 |
        | iss-gm | 0.91 |
        <BLANKLINE>
    """
    ratios = sorted({cell.ratio for cell in cells if not cell.is_dense})
    lines = [
        f"| method | {' | '.join(f'{100 * ratio:.4g}%' for ratio in ratios)} |",
        f"|---|{'---:|' * len(ratios)}",
    ]
    found = {(cell.method, cell.steps, cell.ratio): cell.metric for cell in cells}
    for method, steps in dict.fromkeys((cell.method, cell.steps) for cell in cells):
        # The dense model has one value, which stands beside all ratios.
        row = [found.get((method, steps, 0.0 if method == "dense" else ratio)) for ratio in ratios]
        label = f"{method}, {steps} steps" if steps else method
        lines.append(f"| {label} | {' | '.join('' if value is None else f'{value:.4g}' for value in row)} |")
    return "\n".join(lines) + "\n"


def csv_text(cells: Sequence[Cell]) -> str:
    """One line per cell, after a line of column names."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [entry.name for entry in fields(Cell)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(cell) for cell in cells)
    return out.getvalue()


def json_text(cells: Sequence[Cell]) -> str:
    """All cells as a JSON array; a metric that is no finite number is null, as JSON has none such."""
    rows = [asdict(cell) | {"metric": cell.metric if isfinite(cell.metric) else None} for cell in cells]
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"
