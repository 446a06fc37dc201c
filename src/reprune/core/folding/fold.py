"""Corrections of consumers, as inert data that a plan carries."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, PlainSerializer

from reprune.core.errors import PlanError


def _from_text(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("expected base64 text")
    return base64.b64decode(text, validate=True)


def _to_text(numbers: bytes) -> str:
    return base64.b64encode(numbers).decode()


Numbers = Annotated[bytes, BeforeValidator(_from_text), PlainSerializer(_to_text)]
"""Little-endian numbers, row by row; base64 in a plan's text."""


@dataclass(frozen=True)
class Fold:
    """A correction of one consumer: what it read from removed positions, predicted from the positions that stay.

    With its columns split into removed P and kept K: `W_K += W_P A` and `bias += W_P b`.

    Attributes:
        tensor: Name of the weight.
        axis: The axis that is contracted with the units.
        bias: Name of the bias that takes up the offsets, or None.
        coefficients: A (removed × kept), doubles.
        offsets: b (removed), likewise.
    """

    tensor: str
    axis: int
    bias: str | None
    coefficients: Numbers
    offsets: Numbers

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
        return (
            _decode(f"fold of {self.tensor!r}", "coefficients", self.coefficients, (removed, kept)),
            _decode(f"fold of {self.tensor!r}", "offsets", self.offsets, (removed,)),
        )


@dataclass(frozen=True)
class Refit:
    """What a tensor holds in the pruned model, in place of what folding and slicing left there.

    Attributes:
        tensor: Its name.
        shape: Its shape in the pruned model.
        values: The numbers: doubles or singles.
    """

    tensor: str
    shape: tuple[int, ...]
    values: Numbers

    @classmethod
    def of(cls, tensor: str, values: NDArray[Any]) -> Refit:
        """From an array of the shape that the tensor has in the pruned model."""
        return cls(tensor, values.shape, _encode(values, "<f8" if values.dtype == np.float64 else "<f4"))

    def array(self) -> NDArray[Any]:
        """The values.

        Raises:
            PlanError: When they do not have the shape, or are not finite numbers.
        """
        double = len(self.values) > 4 * prod(self.shape)
        return _decode(f"refit of {self.tensor!r}", "values", self.values, self.shape, "<f8" if double else "<f4")


def _encode(values: NDArray[Any], kind: str = "<f8") -> bytes:
    return np.ascontiguousarray(values, dtype=kind).tobytes()


def _decode(where: str, name: str, numbers: bytes, shape: tuple[int, ...], kind: str = "<f8") -> NDArray[Any]:
    """Numbers as an array that cannot be written to.

    Raises:
        PlanError: When they do not have this shape, or are not finite.
    """
    count = len(numbers) / np.dtype(kind).itemsize
    if count != prod(shape):
        raise PlanError(f"{where}: {count:g} {name}, expected {shape}.")
    values = np.frombuffer(numbers, dtype=kind)
    if not np.isfinite(values).all():
        raise PlanError(f"{where}: its {name} hold NaN or infinite values.")
    return values.reshape(shape)
