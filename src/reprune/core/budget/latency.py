"""Latency of a model as a function of the units kept: measured times of single layers, and lines between them.

Recurrent layers and linear maps are measured by themselves at a few sizes, and the whole model twice, dense and small.
The layers say how latency falls from one to the other; a factor and a constant, which is what the rest of the model
takes, make it meet both ends.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from reprune.core.errors import PlanError
from reprune.core.layers import Counts, Extent

LARGEST = 2**31
"""Sizes and step counts above this are damage, not measurements."""
ALIKE = 1.03
"""Times nearer than this factor count as equal: a quiet machine repeats itself to within it."""


@dataclass(frozen=True)
class TimeGrid:
    """Shortest measured times of one kind of layer at some sizes.

    Attributes:
        kind: `lstm`, `gru`, `rnn`, one of their cells (`lstm_cell` …), `linear`, or a convolution in words.
        batch: Sequences at a time; rows for cells and linear maps.
        steps: Time steps; 1 for all but recurrent layers.
        inputs: Input features, increasing.
        units: Units (output features or channels of what has none), increasing.
        ms: Milliseconds (inputs × units).
    """

    kind: str
    batch: int
    steps: int
    inputs: tuple[int, ...]
    units: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    def __call__(self, inputs: float, units: float) -> float:
        """Milliseconds at any size: on lines between measured ones, those of the nearest size outside of them.

        A larger layer never counts as faster than a smaller one, whatever the measurements say.

        Example:
            >>> TimeGrid("lstm", 1, 9, (8,), (1, 5), ((1.0, 3.0),))(8, 2)
            1.5
        """
        rising = np.maximum.accumulate(np.maximum.accumulate(np.asarray(self.ms), axis=0), axis=1)
        rows = _between(self.inputs, inputs, rising)
        return float(_between(self.units, units, rows))


def _between(at: Sequence[int], where: float, values: NDArray[np.float64]) -> Any:
    """Values along their first axis, at a place between measured ones."""
    right = min(max(bisect_right(at, where), 1), len(at) - 1)
    if len(at) == 1:
        return values[0]
    share = min(max((where - at[right - 1]) / (at[right] - at[right - 1]), 0.0), 1.0)
    return values[right - 1] + share * (values[right] - values[right - 1])


@dataclass(frozen=True)
class TimedPart:
    """One layer of the model.

    Attributes:
        name: Where it is: `encoder.lstm:l0_reverse`, `head`.
        grid: Position of its grid in the table.
        inputs: Its input features, as a function of the units kept.
        units: Its units, likewise.
        calls: How often one call of the model runs it.
    """

    name: str
    grid: int
    inputs: Extent
    units: Extent
    calls: int = 1


@dataclass(frozen=True)
class LatencyTable:
    """Measured times from which the latency of any pruned form of one model is predicted.

    Attributes:
        runtime: What ran it, such as `torch 2.13.0`.
        threads: Threads it might use.
        shapes: Shapes of the inputs of one call.
        layers: Units of every layer of the dense model.
        dense_ms: Shortest time of one call of it in milliseconds.
        small: Units of every layer of a small model.
        small_ms: The same of that.
        parts: The layers that were measured by themselves.
        grids: Their times.
        rounding: Pairs of a power of two and a factor. Sizes that are divisible by the one, and by no larger one here,
            take so many times as long as the line between sizes that are divisible by the largest.

    Raises:
        PlanError: When the parts contradict each other.

    Example:
        >>> table = reprune.measure_latency(model, example)                 # doctest: +SKIP
        >>> table({"lstm:l0": 256}), table.multiple                         # doctest: +SKIP
        (17.2, 16)
    """

    runtime: str
    threads: int
    shapes: tuple[tuple[int, ...], ...]
    layers: Mapping[str, int]
    dense_ms: float
    small: Mapping[str, int]
    small_ms: float
    parts: tuple[TimedPart, ...]
    grids: tuple[TimeGrid, ...]
    rounding: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if (
            not all(isfinite(ms) and ms > 0 for ms in (self.dense_ms, self.small_ms))
            or not 1 <= self.threads <= LARGEST
        ):
            raise PlanError("latency table: times of the models and threads must be positive and finite.")
        if self.layers.keys() != self.small.keys():
            raise PlanError("latency table: the dense and the small model must have the same layers.")
        if not all(1 <= size <= LARGEST for size in (*self.layers.values(), *self.small.values())):
            raise PlanError(f"latency table: a layer has fewer than 1 or more than {LARGEST} units.")
        for grid in self.grids:
            _check_grid(grid)
        for part in self.parts:
            if not (0 <= part.grid < len(self.grids) and 1 <= part.calls <= LARGEST):
                raise PlanError(f"latency table: {part.name!r} names grid {part.grid} of {len(self.grids)}.")
            _check_extents(part, self.layers)
        for multiple, times in self.rounding:
            if not (1 <= multiple <= LARGEST and isfinite(times) and times > 0):
                raise PlanError(f"latency table: multiple {multiple} takes {times} times as long.")

    def __call__(self, counts: Counts) -> float:
        """Milliseconds of one call of the model that keeps `counts` units per layer."""
        factor, rest = self._fit
        return factor * self._parts(counts) + rest

    @cached_property
    def _fit(self) -> tuple[float, float]:
        """Factor on the layers' times and constant beside them, neither negative, by which the dense model is met."""
        dense, small = self._parts(self.layers), self._parts(self.small)
        factor = max(self.dense_ms - self.small_ms, 0.0) / (dense - small) if dense > small else 1.0
        factor = min(factor, self.dense_ms / dense) if dense else 0.0
        return factor, self.dense_ms - factor * dense

    def _parts(self, counts: Counts) -> float:
        return sum(part.calls * self.grids[part.grid](part.inputs(counts), part.units(counts)) for part in self.parts)

    @property
    def multiple(self) -> int:
        """The multiple that the machine's kernels like: the smallest from which on no larger one is faster.

        Example:
            >>> rounding = ((1, 1.3), (2, 1.3), (4, 1.02), (8, 1.0))
            >>> LatencyTable("torch", 1, (), {}, 9.0, {}, 5.0, (), (), rounding).multiple
            4
        """
        liked = 1
        for multiple, times in sorted(self.rounding):
            if times > ALIKE:
                liked = 2 * multiple
        return liked

    def to_json(self) -> str:
        """The table as JSON text."""
        return _TABLE.dump_json(self, indent=1).decode() + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> LatencyTable:
        """Read a table from JSON text, checking everything.

        Raises:
            PlanError: When the text is no table.
        """
        try:
            return _TABLE.validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "top level"
            raise PlanError(
                f"Not a latency table: {where}: {first['msg']}. LatencyTable.to_json() writes one."
            ) from None

    @staticmethod
    def read(path: str | Path) -> LatencyTable:
        """Read a table from a file.

        Raises:
            PlanError: When there is no such file, or it holds no table.
        """
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise PlanError(f"latency table {path} cannot be read: {error.strerror}.") from None
        try:
            return LatencyTable.from_json(text)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None

    def check_model(self, layers: Counts) -> None:
        """Raise a `PlanError` unless the table is of a model with these layers and units."""
        if dict(self.layers) != dict(layers):
            raise PlanError(
                f"The latency table was measured for a model of {dict(self.layers)} units, this one has "
                f"{dict(layers)}: measure_latency() this model."
            )

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


def _check_grid(grid: TimeGrid) -> None:
    sizes = [(grid.batch,), (grid.steps,), grid.inputs, grid.units]
    ordered = all(second > first for axis in (grid.inputs, grid.units) for first, second in pairwise(axis))
    in_range = all(axis and all(1 <= size <= LARGEST for size in axis) for axis in sizes)
    shaped = len(grid.ms) == len(grid.inputs) and all(len(row) == len(grid.units) for row in grid.ms)
    if not (ordered and in_range and shaped):
        raise PlanError(f"latency table: the sizes of a grid of {grid.kind!r} are no increasing axes of its times.")
    if not all(isfinite(ms) and ms > 0 for row in grid.ms for ms in row):
        raise PlanError(f"latency table: a grid of {grid.kind!r} holds times that are not positive and finite.")


def _check_extents(part: TimedPart, layers: Counts) -> None:
    for extent in (part.inputs, part.units):
        if not 0 <= extent.fixed <= LARGEST:
            raise PlanError(f"latency table: {part.name!r} has {extent.fixed} fixed features.")
        for name, times in extent.layers:
            if name not in layers or not 1 <= times <= LARGEST:
                raise PlanError(f"latency table: {part.name!r} reads {times} times {name!r}, which it does not know.")


_TABLE = TypeAdapter(LatencyTable)
