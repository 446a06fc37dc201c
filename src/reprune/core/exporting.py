"""What every export reports: where the file is, what it takes, and how far its outputs are from the framework's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprune.core.errors import RepruneError

TOLERANCE = 1e-3
"""Largest difference from the framework that a float export may have, as a fraction of the largest output."""


class ExportError(RepruneError):
    """A model cannot be written in a format, or the file does not compute what the model does."""


@dataclass(frozen=True)
class Comparison:
    """One run of the file beside one run of the model.

    Attributes:
        shapes: Shapes of the inputs.
        difference: Largest absolute difference of any output element.
        scale: Largest absolute output of the model.
    """

    shapes: tuple[tuple[int, ...], ...]
    difference: float
    scale: float

    @property
    def relative(self) -> float:
        """The difference as a fraction of the largest output."""
        return self.difference / max(self.scale, 1e-6)


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote and how it compares with the model; `print` it.

    Attributes:
        path: The file.
        runtime: The runtime that ran it, with its version; empty when none can run it on this machine.
        inputs: Axes of every input, by name: a number where the size is fixed, a name where it is free.
        outputs: Axes of every output, by name.
        comparisons: One per set of shapes that was run.
        quantised: The same for the file with 8-bit weights, when there is one; `comparisons` is then of the float form.
        quality: What `evaluate` returned for the file in single precision (`float`) and with 8-bit weights (`int8`).
        notes: What the user should know.
    """

    path: Path
    runtime: str
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    comparisons: tuple[Comparison, ...]
    quantised: tuple[Comparison, ...] = ()
    quality: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def difference(self) -> float:
        """Largest absolute difference between the float file's outputs and the model's."""
        return max((comparison.difference for comparison in self.comparisons), default=float("nan"))

    @property
    def quantised_difference(self) -> float:
        """The same for the 8-bit file; NaN when there is none."""
        return max((comparison.difference for comparison in self.quantised), default=float("nan"))

    def __str__(self) -> str:
        files = [self.path] if self.path.is_file() else [file for file in self.path.rglob("*") if file.is_file()]
        lines = [f"{self.path} ({sum(file.stat().st_size for file in files) / 1e6:.2f} MB)"]
        for label, ports in (("in ", self.inputs), ("out", self.outputs)):
            lines += [f"  {label} {name} [{', '.join(map(str, axes))}]" for name, axes in ports.items()]
        for kind, comparisons in (("", self.comparisons), (" with 8-bit weights", self.quantised)):
            lines += [_sentence(self.runtime + kind, comparison) for comparison in comparisons]
        lines += [f"  {name}: {value:.6g}" for name, value in self.quality.items()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def _sentence(runtime: str, comparison: Comparison) -> str:
    shapes = ", ".join("×".join(map(str, shape)) or "scalar" for shape in comparison.shapes)
    return (
        f"  {runtime} on {shapes}: largest difference {comparison.difference:.2e} "
        f"({comparison.relative:.1e} of the largest output)"
    )


def compare(
    inputs: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]], actual: Sequence[NDArray[Any]]
) -> Comparison:
    """How far a file's outputs are from the model's.

    Raises:
        ExportError: When they do not have the same number or shapes, or are NaN where the model's are not.
    """
    wanted, got = [a.shape for a in expected], [a.shape for a in actual]
    if wanted != got:
        raise ExportError(f"The exported file returns shapes {got}, the model {wanted}.")
    difference = scale = 0.0
    for one, other in zip(expected, actual, strict=True):
        one, other = one.astype(np.float64), np.asarray(other).astype(np.float64)
        if not np.array_equal(np.isfinite(one), np.isfinite(other)):
            raise ExportError("The exported file returns NaN or infinite values where the model does not.")
        finite = np.isfinite(one)
        if finite.any():
            difference = max(difference, float(np.abs(one[finite] - other[finite]).max()))
            scale = max(scale, float(np.abs(one[finite]).max()))
    return Comparison(tuple(tuple(a.shape) for a in inputs), difference, scale)


def require_close(path: Path, comparison: Comparison, tolerance: float = TOLERANCE) -> None:
    """Raise an `ExportError` if the difference is more than the tolerance."""
    if comparison.relative > tolerance and comparison.difference > 1e-6:
        raise ExportError(
            f"{path} differs from the model by {comparison.difference:.3g} (its largest output is "
            f"{comparison.scale:.3g}) on inputs of shapes {list(comparison.shapes)}: nothing was written. "
            "Does forward draw random numbers, or take a different path for other sizes?"
        )
