"""What every export reports: where the file is, what it takes, and how far its outputs are from the framework's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprune.core.errors import RepruneError

Selection = bool | Iterable[str] | Mapping[str, Iterable[int]] | None
"""Sizes of inputs as a user names them: `["time"]` as the report calls them, `{"x": [1]}` by input and axis, or all
(True) or none (False) of them."""
TOLERANCE = 1e-3
"""Largest difference from the framework that a float export may have, as a fraction of the largest output."""
CALLS = 3
"""How many calls in a row are compared, each on the states that the last one left. So often comes a calibration batch,
too: inputs that stay drive states further than any that change do, and a range that is too narrow cuts them off."""


CHUNKS_DIFFER = (
    "in chunks the outputs are not those of the whole sequence: something besides recurrent states reads across steps "
    "(a convolution, attention, pooling, a loop that runs backwards)"
)
"""What is said of a file with states that cannot run chunk by chunk all the same."""


class ExportError(RepruneError):
    """A model cannot be written in a format, or the file does not compute what the model does."""


@dataclass(frozen=True)
class Comparison:
    """One run of the file beside one run of the model.

    Attributes:
        shapes: Shapes of the inputs.
        difference: Largest absolute difference of any output element.
        scale: Largest absolute output of the model.
        calls: How many calls in a row were compared, states handed on from one to the next.
    """

    shapes: tuple[tuple[int, ...], ...]
    difference: float
    scale: float
    calls: int = 1

    @property
    def relative(self) -> float:
        """The difference as a fraction of the largest output."""
        return self.difference / max(self.scale, 1e-6)


@dataclass(frozen=True)
class StatePair:
    """A state that is carried from one call of a file to the next.

    Attributes:
        input: Name of the input that takes it.
        output: Name of the output to feed back into it.
        start: What to give in the first call: `zeros`, `nothing` where the input may be left out, or
            `the value in the file's metadata`.
    """

    input: str
    output: str
    start: str = "zeros"


@dataclass(frozen=True)
class EightBits:
    """What a quantised file really holds in 8 bits.

    Attributes:
        tensors: Number of tensors of 8-bit integers: weights, and activations where the file says so.
        of: Number of all tensors of numbers.
        weights: Weights in 8 bits, in numbers.
        of_weights: All weights, in numbers.
        left: What stayed in single precision, and why.
    """

    tensors: int
    of: int
    weights: int
    of_weights: int
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        share = self.weights / self.of_weights if self.of_weights else 0.0
        lines = [
            f"  8 bits: {self.tensors} of {self.of} tensors, {self.weights} of {self.of_weights} weights ({share:.0%})",
            *(f"  single precision: {line}" for line in self.left),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote and how it compares with the model; `print` it.

    Attributes:
        path: The file.
        runtime: The runtime that ran it, with its version; empty when none can run it on this machine.
        inputs: Axes of every input, by name: a number where the size is fixed, a name where it is free.
        outputs: Axes of every output, by name.
        comparisons: One per set of shapes that was run.
        quantised: The same for the quantised file, when there is one; `comparisons` is then of the float form.
        quality: What `evaluate` returned for the file in single precision (`float`) and in 8 bits (`int8`).
        notes: What the user should know.
        states: The states to carry from call to call.
        eight_bits: What is really 8 bits, when that was asked for.
    """

    path: Path
    runtime: str
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    comparisons: tuple[Comparison, ...]
    quantised: tuple[Comparison, ...] = ()
    quality: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    states: tuple[StatePair, ...] = ()
    eight_bits: EightBits | None = None

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
        lines += [f"  state {pair.output} → {pair.input}, at first {pair.start}" for pair in self.states]
        for kind, comparisons in (("", self.comparisons), (" in 8 bits", self.quantised)):
            lines += [_sentence(self.runtime + kind, comparison) for comparison in comparisons]
        lines += [] if self.eight_bits is None else [str(self.eight_bits)]
        lines += [f"  {name}: {value:.6g}" for name, value in self.quality.items()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def _sentence(runtime: str, comparison: Comparison) -> str:
    shapes = ", ".join("×".join(map(str, shape)) or "scalar" for shape in comparison.shapes)
    row = f", {comparison.calls} calls in a row" if comparison.calls > 1 else ""
    return (
        f"  {runtime} on {shapes}{row}: largest difference {comparison.difference:.2e} "
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


def worst(comparisons: Sequence[Comparison]) -> Comparison:
    """The comparison of several calls in a row, as one."""
    largest = max(comparisons, key=lambda comparison: comparison.relative)
    return replace(largest, shapes=comparisons[0].shapes, calls=len(comparisons))


def checked_path(path: str | Path, known: Collection[str]) -> Path:
    """The path to write to, if a file of a known format can be there.

    Raises:
        ExportError: When its suffix is unknown, it is a folder, or something above it is none.
    """
    path = Path(path)
    if path.suffix not in known:
        raise ExportError(f"{path.name}: unknown format {path.suffix!r}; known are {', '.join(known)}.")
    if path.is_dir() and path.suffix != ".mlpackage":
        raise ExportError(f"{path} is a folder. Give the name of a file, or remove the folder.")
    above = next((folder for folder in path.parents if folder.exists()), path.parent)
    if above.exists() and not above.is_dir():
        raise ExportError(f"{path}: {above} is a file, not a folder.")
    return path


def checked_way(int8: bool | str, calibration: Any, known: Sequence[str]) -> str | None:
    """The way to quantise that `int8=` names, or None.

    Raises:
        ExportError: When a format does not know it, or calibration batches are missing or have no use.
    """
    way = int8 if isinstance(int8, str) else "dynamic" if int8 else None
    if way is not None and way not in known:
        ways = ", ".join(f'"{name}"' for name in known) or "none; .onnx files take some"
        raise ExportError(f"int8={int8!r}: the ways to quantise such a file are {ways}.")
    if (way not in (None, "dynamic")) != (calibration is not None):
        raise ExportError('int8="static" and calibration= go together: some batches as the model takes them.')
    if isinstance(calibration, Mapping) or hasattr(calibration, "shape"):
        raise ExportError("calibration= is one batch: give a list of batches, each as the model takes it.")
    return way


def beyond_calibration(
    names: Sequence[str], example: Sequence[NDArray[Any]], batches: Sequence[Sequence[NDArray[Any]]]
) -> list[str]:
    """Notes on inputs of the example that lie outside the ranges that calibration fixes, where 8 bits cut numbers off.

    Example:
        >>> print(*beyond_calibration(["x"], [np.array([3.0])], [[np.array([-1.0, 2.0])]]))
        x reaches 3 in the example and -1 to 2 in calibration=: what lies outside is cut off. Give more batches
    """
    notes = []
    for name, array, held in zip(names, example, zip(*batches, strict=True), strict=True):
        if not array.size or not np.issubdtype(array.dtype, np.floating):
            continue
        low, high = min(float(one.min()) for one in held), max(float(one.max()) for one in held)
        furthest = max((float(array.min()), float(array.max())), key=lambda value: abs(value - (low + high) / 2))
        if abs(furthest - (low + high) / 2) > 1.1 * (high - low) / 2:
            notes.append(
                f"{name} reaches {furthest:.3g} in the example and {low:.3g} to {high:.3g} in calibration=: what lies "
                "outside is cut off. Give more batches"
            )
    return notes


def chosen_axes(
    dynamic: Selection, fixed: Selection, inputs: Mapping[str, Sequence[int | str]]
) -> tuple[set[tuple[str, int]] | None, set[tuple[str, int]]]:
    """The inputs' axes that the user wants free, None for all that can be, and those that are to be fixed.

    Raises:
        ExportError: When there is no such input, axis or size, or both name one.

    Example:
        >>> chosen_axes(["time"], {"x": [0]}, {"x": ("batch", "time", 8)})
        ({('x', 1)}, {('x', 0)})
    """
    free = None if dynamic is None or dynamic is True else _selected(dynamic, inputs, "dynamic")
    stay = set() if fixed is None else _selected(fixed, inputs, "fixed")
    for name, axis in sorted((free or set()) & stay):
        raise ExportError(f"dynamic= and fixed= both name axis {axis} of {name}.")
    return free, stay


def _selected(selection: Any, inputs: Mapping[str, Sequence[int | str]], option: str) -> set[tuple[str, int]]:
    if isinstance(selection, bool):
        return {(name, axis) for name, axes in inputs.items() for axis in range(len(axes))} if selection else set()
    found = set()
    if isinstance(selection, Mapping):
        for name, axes in selection.items():
            found |= {(name, axis) for axis in ([axes] if isinstance(axes, int) else axes)}
        for name, axis in found:
            if axis not in range(len(inputs.get(name, ()))):
                known = ", ".join(f"{key} ({len(axes)} axes)" for key, axes in inputs.items())
                raise ExportError(f"{option}=: there is no axis {axis} of {name!r}; the inputs are {known}.")
        return found
    for size in [selection] if isinstance(selection, str) else selection:
        named = {(name, k) for name, axes in inputs.items() for k, axis in enumerate(axes) if axis == size}
        if not named:
            free = ", ".join(dict.fromkeys(a for axes in inputs.values() for a in axes if isinstance(a, str)))
            raise ExportError(
                f"{option}=: no size of the inputs is called {size!r}; those that can be free are: {free or 'none'}. "
                f'Or name an input and its axes: {option}={{"x": [1]}}.'
            )
        found |= named
    return found
