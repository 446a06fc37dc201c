"""Moments of responses class by class, streaming: what a criterion needs to know about labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprune.core.errors import StatisticsError
from reprune.core.evidence.moments import to_numpy

Array = Any


class ClassMoments:
    """Number, mean and scatter of the responses of each class, unit by unit.

    Args:
        name: The layer, for error messages.
        units: Number of units.

    Example:
        >>> moments = ClassMoments("lstm:l0", 1)
        >>> moments.update(np.array([[0.0], [2.0], [5.0], [7.0]]), np.array([[1, 0], [1, 0], [0, 1], [0, 1]]))
        >>> moments.separability()
        array([6.25])
    """

    def __init__(self, name: str, units: int) -> None:
        self.name = name
        self.units = units
        self._counts = np.zeros(0)
        self._means = np.zeros((0, units))
        self._scatters = np.zeros((0, units))

    def update(self, rows: Array, members: Array) -> None:
        """Add responses (n × units) with their classes (n × classes, 1 where a row belongs to the class, else 0).

        Raises:
            StatisticsError: When the two disagree in length.
        """
        values, belongs = to_numpy(rows), to_numpy(members)
        if len(values) != len(belongs):
            raise StatisticsError(f"{self.name}: {len(belongs)} labels for {len(values)} responses.")
        self._grow(belongs.shape[1])
        for index in np.flatnonzero(belongs.any(axis=0)):
            own = values[belongs[:, index] > 0]
            mean = own.mean(axis=0)
            self._merge(int(index), len(own), mean, ((own - mean) ** 2).sum(axis=0))

    def merge(self, other: ClassMoments) -> None:
        """Add all that `other` has seen."""
        self._grow(len(other._counts))
        for index in np.flatnonzero(other._counts):
            self._merge(int(index), other._counts[index], other._means[index], other._scatters[index])

    def state(self) -> dict[str, NDArray[np.float64]]:
        """The accumulated sums, for checkpoints and for exchange between processes."""
        return {"counts": self._counts, "means": self._means, "scatters": self._scatters}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Replace the accumulated sums by those of `state()`."""
        # A copy: these are added to in place.
        self._counts, self._means, self._scatters = (to_numpy(state[name]) for name in ("counts", "means", "scatters"))

    @property
    def count(self) -> int:
        """Rows that were seen, those of several classes several times."""
        return int(self._counts.sum())

    def _grow(self, classes: int) -> None:
        """Class numbers show how many there are only as they come."""
        new = max(classes - len(self._counts), 0)
        self._counts = np.append(self._counts, np.zeros(new))
        self._means = np.append(self._means, np.zeros((new, self.units)), axis=0)
        self._scatters = np.append(self._scatters, np.zeros((new, self.units)), axis=0)

    def _merge(self, index: int, count: float, mean: NDArray[np.float64], scatter: NDArray[np.float64]) -> None:
        before = self._counts[index]
        shift = mean - self._means[index]
        total = before + count
        self._scatters[index] += scatter + shift**2 * (before * count / total)
        self._means[index] += shift * (count / total)
        self._counts[index] = total

    def separability(self) -> NDArray[np.float64]:
        """Scatter between the class means over the scatter within the classes (units); 0 for a unit without either.

        Raises:
            StatisticsError: When fewer than two classes were seen.
        """
        if np.count_nonzero(self._counts) < 2:
            raise StatisticsError(f"{self.name}: the labels name fewer than two classes: give batches of several.")
        total = self._counts.sum()
        centre = self._counts @ self._means / total
        between = self._counts @ (self._means - centre) ** 2 / total
        within = self._scatters.sum(axis=0) / total
        # A unit that separates perfectly is worth more than any other, and still a number.
        floor = np.finfo(np.float64).eps * max(float(between.max()), np.finfo(np.float64).tiny)
        return np.asarray(between / np.maximum(within, floor))
