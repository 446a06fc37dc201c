"""Moments of responses class by class, streaming: what a criterion needs to know about labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprune.core.errors import StatisticsError
from reprune.core.statistics import to_numpy

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
        new = max(belongs.shape[1] - len(self._counts), 0)
        if new:
            # Class numbers show how many there are only as they come.
            self._counts = np.append(self._counts, np.zeros(new))
            self._means = np.append(self._means, np.zeros((new, self.units)), axis=0)
            self._scatters = np.append(self._scatters, np.zeros((new, self.units)), axis=0)
        for index in np.flatnonzero(belongs.any(axis=0)):
            own = values[belongs[:, index] > 0]
            self._merge(int(index), own)

    def _merge(self, index: int, own: NDArray[np.float64]) -> None:
        mean, before, count = own.mean(axis=0), self._counts[index], len(own)
        shift = mean - self._means[index]
        total = before + count
        self._scatters[index] += ((own - mean) ** 2).sum(axis=0) + shift**2 * (before * count / total)
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
