"""Streaming mean and covariance of responses.

Blocks of rows are centred on themselves and merged pairwise (Chan, Golub and LeVeque, "Updating formulae and a pairwise
algorithm for computing sample variances", 1979), so a large mean costs no digits, and any split of the data into
batches or processes gives the same result to rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from reprune.core.errors import StatisticsError

Array = Any

BLOCK = 1 << 22
"""Numbers that are taken in at a time: 32 MB in double precision."""
WIDE = 256
"""Features from which on the products of a block take time."""


class Moments:
    """Mean and covariance of `size` features over any number of rows, on the rows' own device, in double precision.

    On processors, products of many centred features of single precision are added up in single precision within a
    block of rows: they are known to seven digits then, in half the time.

    Args:
        name: What the rows are, for error messages (a layer's name).
        size: Number of features.

    Example:
        >>> moments = Moments("lstm:l0", 2)
        >>> moments.update(np.array([[1.0, 2.0], [3.0, 2.0]]))
        >>> moments.mean, moments.covariance
        (array([2., 2.]), array([[1., 0.],
               [0., 0.]]))
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.count = 0
        self._mean: Array = None
        self._scatter: Array = None

    def update(self, rows: Array) -> None:
        """Add rows (n × size) that are valid: padding must have been left out by the caller.

        Raises:
            StatisticsError: When the rows are of another size.
        """
        if rows.ndim != 2 or rows.shape[1] != self.size:
            raise StatisticsError(
                f"{self.name}: got responses of shape {tuple(rows.shape)}, expected (rows, {self.size}). "
                "Give one row per valid time step."
            )
        # Sums that remember how they were computed would keep every batch of a training run alive.
        rows = rows.detach() if hasattr(rows, "detach") else rows
        step = max(BLOCK // max(self.size, 1), 1)
        for start in range(0, rows.shape[0], step):
            self._add(rows[start : start + step])

    def merge(self, other: Moments) -> None:
        """Add all that `other` has seen. The order of merging does not matter beyond rounding.

        Raises:
            StatisticsError: When `other` has another number of features.
        """
        if other.size != self.size:
            raise StatisticsError(f"{self.name}: cannot merge moments of {other.size} features into {self.size}.")
        if other.count:
            self._merge(other.count, other._mean, other._scatter)

    def without(self, part: Moments) -> Moments:
        """Moments of the rows seen, less those that `part` has seen, which must be some of them."""
        rest = Moments(self.name, self.size)
        rest.count = self.count - part.count
        if part.count == 0:
            rest._mean, rest._scatter = self._mean, self._scatter
        elif rest.count:
            rest._mean = self._mean + (self._mean - part._mean) * (part.count / rest.count)
            delta = rest._mean - part._mean
            spread = delta[:, None] * delta[None, :] * (rest.count * part.count / self.count)
            rest._scatter = self._scatter - part._scatter - spread
        return rest

    def _add(self, rows: Array) -> None:
        xp = array_namespace(rows)
        on_processor = getattr(device(rows), "type", "cpu") == "cpu"
        if self.size >= WIDE and on_processor and xp.finfo(rows.dtype).bits <= 32:
            with np.errstate(over="ignore", invalid="ignore"):
                mean, scatter = _in_single(xp, xp.astype(rows, xp.float32))
            if bool(xp.all(xp.isfinite(scatter.diagonal()))):
                self._merge(rows.shape[0], mean, scatter)
                return
        rows = xp.astype(rows, widest(xp, rows))
        mean = xp.mean(rows, axis=0)
        centred = rows - mean
        # A long sum of large numbers has rounded; what it left over is small and sums up exactly.
        mean = mean + xp.mean(centred, axis=0)
        self._merge(rows.shape[0], mean, centred.T @ centred)

    def _merge(self, count: int, mean: Array, scatter: Array) -> None:
        if self.count == 0:
            self.count, self._mean, self._scatter = count, mean, scatter
            return
        total = self.count + count
        delta = mean - self._mean
        # A new array: others may hold the sums, and what is added.
        whole = (delta * (self.count * count / total))[:, None] * delta[None, :]
        whole += scatter
        whole += self._scatter
        self._mean, self._scatter = self._mean + delta * (count / total), whole
        self.count = total

    @property
    def mean(self) -> Array:
        """Mean response (size).

        Raises:
            StatisticsError: When no rows were seen, or some held NaN or infinite values. The message has the name.
        """
        self._check()
        return self._mean

    @property
    def covariance(self) -> Array:
        """Population covariance (size × size): divided by the number of rows.

        Raises:
            StatisticsError: As for `mean`.
        """
        self._check()
        return self._scatter / self.count

    def _check(self) -> None:
        if self.count == 0:
            raise StatisticsError(
                f"{self.name}: no responses were seen. The calibration batches are empty, or it never ran on them."
            )
        xp = array_namespace(self._mean)
        if not bool(xp.all(xp.isfinite(self._mean))) or not bool(xp.all(xp.isfinite(self._scatter))):
            raise StatisticsError(
                f"{self.name}: its responses hold NaN or infinite values. Check the calibration batches and the "
                "model's weights: the model itself gives NaN on this data."
            )

    def state(self) -> dict[str, Any]:
        """The accumulated sums, for checkpoints and for reduction across processes: count, mean, scatter."""
        return {"count": self.count, "mean": self._mean, "scatter": self._scatter}

    def restore(self, state: dict[str, Any]) -> None:
        """Replace the accumulated sums by those of `state()`."""
        self.count, self._mean, self._scatter = int(state["count"]), state["mean"], state["scatter"]


def to_numpy(array: Array) -> NDArray[np.float64]:
    """A float64 NumPy copy of an array on any device."""
    if hasattr(array, "detach"):
        array = array.detach().cpu().double().numpy()
    return np.array(array, dtype=np.float64)


def _in_single(xp: Any, rows: Array) -> tuple[Array, Array]:
    """Mean and scatter of rows in double, by products in single precision; not finite where these overflow.

    By the library that the rows are of: the threads of two would get in each other's way.
    """
    about = xp.mean(rows, axis=0)
    centred = rows - about
    # A sum in single precision has rounded; what it left over is small, and known to more digits.
    rest = xp.sum(centred, axis=0, dtype=xp.float64) / rows.shape[0]
    scatter = xp.astype(centred.T @ centred, xp.float64)
    return xp.astype(about, xp.float64) + rest, scatter - rows.shape[0] * rest[:, None] * rest[None, :]


def widest(xp: Any, rows: Array) -> Any:
    """The most precise kind of numbers on an array's device: Apple's GPU backend is the one without doubles."""
    return xp.float32 if getattr(device(rows), "type", "") == "mps" else xp.float64
