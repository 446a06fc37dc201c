"""A correction of one consumer, as inert data that a plan carries."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from reprune.core.errors import PlanError


@dataclass(frozen=True)
class Fold:
    """A correction of one consumer: what it read from removed positions, predicted from the positions that stay.

    With its columns split into removed P and kept K: `W_K += W_P A` and `bias += W_P b`.

    Attributes:
        tensor: Name of the weight.
        axis: The axis that is contracted with the units.
        bias: Name of the bias that takes up the offsets, or None.
        coefficients: A (removed × kept) as base64 of little-endian doubles, row by row.
        offsets: b (removed), likewise.
    """

    tensor: str
    axis: int
    bias: str | None
    coefficients: str
    offsets: str

    @classmethod
    def of(
        cls, tensor: str, axis: int, bias: str | None, coefficients: NDArray[np.float64], offsets: NDArray[np.float64]
    ) -> Fold:
        """From arrays."""
        return cls(tensor, axis, bias, _encode(coefficients), _encode(offsets))

    def arrays(self, removed: int, kept: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A (removed × kept) and b (removed).

        Raises:
            PlanError: When they do not have these sizes, or are not finite numbers.
        """
        found = []
        for name, shape in (("coefficients", (removed, kept)), ("offsets", (removed,))):
            try:
                values = np.frombuffer(base64.b64decode(getattr(self, name), validate=True), dtype="<f8")
            except ValueError as error:
                raise PlanError(f"fold of {self.tensor!r}: its {name} are not base64 of doubles ({error}).") from None
            if len(values) != prod(shape):
                raise PlanError(f"fold of {self.tensor!r}: {len(values)} {name}, expected {shape}.")
            if not np.isfinite(values).all():
                raise PlanError(f"fold of {self.tensor!r}: its {name} hold NaN or infinite values.")
            found.append(values.reshape(shape))
        return found[0], found[1]


def _encode(values: NDArray[np.float64]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode()
