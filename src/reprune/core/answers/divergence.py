"""How far apart two models' answers are: divergences of outputs, with gradients and projections of the curvature.

Everything is in closed form, over rows of numbers (n × features), so that no framework has to differentiate it.

- `kl`: Σ w log(w / f), of probabilities, or of the softmax of other numbers.
- `bce`: w log(w / f) + (1 − w) log((1 − w) / (1 − f)), added up, of probabilities, or of the sigmoid of other numbers.
- `mse`: the mean squared difference over the dense answers' variance.
- `cosine`: 1 − cos of the angle between the two rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from reprune.core.errors import StatisticsError

Array = Any

RULED_OUT = -1e4
"""A logit whose exponential is zero in every precision: that of a class whose logit is −∞."""
TINY = 1e-12


NAMESPACES: list[Callable[[Array], Any]] = []
"""Where else than in the array API operations come from: functions of an array that return a namespace, or None."""


def namespace(rows: Array) -> Any:
    """The operations of an array's library."""
    for find in NAMESPACES:
        if (found := find(rows)) is not None:
            return found
    return array_namespace(rows)


class Divergence(ABC):
    """A divergence of rows from the dense model's. All arrays are n × features."""

    @abstractmethod
    def values(self, found: Array, wanted: Array) -> Array:
        """The divergence of every row (n)."""

    @abstractmethod
    def gradient(self, found: Array, wanted: Array) -> Array:
        """Its gradient with respect to what was found."""

    @abstractmethod
    def projection(self, found: Array, wanted: Array, rng: np.random.Generator) -> Array:
        """Random rows v with E[v vᵀ] the curvature (Gauss-Newton).

        The curvature is that halfway between both answers: where the small model is confidently wrong, its own
        vanishes.
        """


@dataclass(frozen=True)
class Softmax(Divergence):
    """Kullback-Leibler divergence of the softmax of both rows."""

    def values(self, found: Array, wanted: Array) -> Array:
        """See `Divergence`."""
        xp = namespace(found)
        own, dense = log_softmax(found), log_softmax(wanted)
        return xp.sum(xp.exp(dense) * (dense - own), axis=-1)

    def gradient(self, found: Array, wanted: Array) -> Array:
        """See `Divergence`."""
        return softmax(found) - softmax(wanted)

    def projection(self, found: Array, wanted: Array, rng: np.random.Generator) -> Array:
        """See `Divergence`."""
        xp = namespace(found)
        middle = (softmax(found) + softmax(wanted)) / 2
        drawn = xp.sqrt(middle) * random_signs(rng, middle)
        return drawn - middle * xp.sum(drawn, axis=-1, keepdims=True)


@dataclass(frozen=True)
class Sigmoid(Divergence):
    """Binary cross entropy of the sigmoid of both rows, less that of the dense answers with themselves; summed."""

    def values(self, found: Array, wanted: Array) -> Array:
        """See `Divergence`."""
        xp = namespace(found)
        target = sigmoid(wanted)
        return xp.sum(_softplus(found) - _softplus(wanted) - target * (found - wanted), axis=-1)

    def gradient(self, found: Array, wanted: Array) -> Array:
        """See `Divergence`."""
        return sigmoid(found) - sigmoid(wanted)

    def projection(self, found: Array, wanted: Array, rng: np.random.Generator) -> Array:
        """See `Divergence`."""
        xp = namespace(found)
        middle = (sigmoid(found) + sigmoid(wanted)) / 2
        return xp.sqrt(middle * (1 - middle)) * random_signs(rng, middle)


@dataclass(frozen=True)
class Distribution(Divergence):
    """Kullback-Leibler divergence of rows that are probabilities."""

    def values(self, found: Array, wanted: Array) -> Array:
        """See `Divergence`."""
        xp = namespace(found)
        own, dense = _inside(found), _inside(wanted)
        return xp.sum(dense * (xp.log(dense) - xp.log(own)) - dense + own, axis=-1)

    def gradient(self, found: Array, wanted: Array) -> Array:
        """See `Divergence`."""
        return 1 - _inside(wanted) / _inside(found)

    def projection(self, found: Array, wanted: Array, rng: np.random.Generator) -> Array:
        """See `Divergence`."""
        return random_signs(rng, found) / namespace(found).sqrt((_inside(found) + _inside(wanted)) / 2)


@dataclass(frozen=True)
class Chances(Divergence):
    """Binary cross entropy of numbers that are probabilities each, less that of the dense ones with themselves."""

    def values(self, found: Array, wanted: Array) -> Array:
        """See `Divergence`."""
        sides = Distribution()
        return sides.values(found, wanted) + sides.values(1 - found, 1 - wanted)

    def gradient(self, found: Array, wanted: Array) -> Array:
        """See `Divergence`."""
        sides = Distribution()
        return sides.gradient(found, wanted) - sides.gradient(1 - found, 1 - wanted)

    def projection(self, found: Array, wanted: Array, rng: np.random.Generator) -> Array:
        """See `Divergence`."""
        middle = _inside((found + wanted) / 2)
        return random_signs(rng, found) / namespace(found).sqrt(middle * _inside(1 - middle))


@dataclass(frozen=True)
class Square(Divergence):
    """Mean squared difference over a variance.

    Attributes:
        variance: That of the dense model's answers.
    """

    variance: float

    def values(self, found: Array, wanted: Array) -> Array:
        """See `Divergence`."""
        return namespace(found).mean((found - wanted) ** 2, axis=-1) / self.variance

    def gradient(self, found: Array, wanted: Array) -> Array:
        """See `Divergence`."""
        return (found - wanted) * (2 / (found.shape[-1] * self.variance))

    def projection(self, found: Array, wanted: Array, rng: np.random.Generator) -> Array:
        """See `Divergence`."""
        return random_signs(rng, found) * (2 / (found.shape[-1] * self.variance)) ** 0.5


@dataclass(frozen=True)
class Cosine(Divergence):
    """1 − cos of the angle between two rows."""

    def values(self, found: Array, wanted: Array) -> Array:
        """See `Divergence`."""
        xp = namespace(found)
        return 1 - xp.sum(_unit(found)[0] * _unit(wanted)[0], axis=-1)

    def gradient(self, found: Array, wanted: Array) -> Array:
        """See `Divergence`."""
        xp = namespace(found)
        (own, length), (dense, _) = _unit(found), _unit(wanted)
        return (own * xp.sum(own * dense, axis=-1, keepdims=True) - dense) / length

    def projection(self, found: Array, wanted: Array, rng: np.random.Generator) -> Array:
        """See `Divergence`."""
        xp = namespace(found)
        own, length = _unit(found)
        signs = random_signs(rng, found)
        return (signs - own * xp.sum(own * signs, axis=-1, keepdims=True)) / length


@dataclass(frozen=True)
class Numbers(Divergence):
    """Numbers of which nobody says what they mean: the square, plus the divergence of their softmax.

    The latter is what counts if they are logits, and zero at the same place if they are not.

    Attributes:
        square: The first part.
    """

    square: Square

    def values(self, found: Array, wanted: Array) -> Array:
        """See `Divergence`."""
        return self.square.values(found, wanted) + Softmax().values(found, wanted)

    def gradient(self, found: Array, wanted: Array) -> Array:
        """See `Divergence`."""
        return self.square.gradient(found, wanted) + Softmax().gradient(found, wanted)

    def projection(self, found: Array, wanted: Array, rng: np.random.Generator) -> Array:
        """See `Divergence`."""
        # Two draws: with one, the curvatures of both would not just add up.
        return self.square.projection(found, wanted, rng) + Softmax().projection(found, wanted, rng)


NAMES = ("kl", "bce", "mse", "cosine")


def divergence_of(wanted: Array, name: str | None = None, *, chances: bool = False) -> Divergence:
    """What to compare an output by, from the dense model's answers.

    Args:
        wanted: Dense answers (n × features).
        name: One of `NAMES`, or None to find out: rows that add up to 1 are probabilities; numbers that a sigmoid made
            are probabilities each; other numbers from 0 to 1 are just numbers, as embeddings are; and of anything else
            nobody knows whether it is a logit.
        chances: Whether a sigmoid made the numbers.

    Raises:
        StatisticsError: When there is no such divergence.
    """
    xp = namespace(wanted)
    inside = bool(xp.all(wanted >= 0)) and bool(xp.all(wanted <= 1))
    sums = inside and wanted.shape[-1] > 1 and bool(xp.all(xp.abs(xp.sum(wanted, axis=-1) - 1) <= 1e-3))
    if name is None:
        name = "kl" if sums else "bce" if inside and chances else "mse" if inside or wanted.shape[-1] == 1 else ""
    counts = wanted[xp.isfinite(wanted)]
    square = Square(max(float(xp.mean((counts - xp.mean(counts)) ** 2)), 1e-7))
    known: dict[str, Divergence] = {
        "": Numbers(square),
        "kl": Distribution() if sums else Softmax(),
        "bce": Chances() if inside else Sigmoid(),
        "mse": square,
        "cosine": Cosine(),
    }
    check_name(name)
    return known[name]


def check_name(name: str | None) -> None:
    """Raise unless there is such a divergence, or none is named.

    Raises:
        StatisticsError: When there is none.
    """
    if name not in (None, "", *NAMES):
        raise StatisticsError(f"divergence={name!r} is not known: give one of {', '.join(NAMES)}.")


def apart(found: Array, wanted: Array, name: str | None = None, *, chances: bool = False) -> Array:
    """How far an output is from the dense model's: the mean divergence over rows (see `divergence_of`).

    Args:
        found: Output of the small model (… × features).
        wanted: That of the dense model, of the same shape.
        name: One of `NAMES`, or None.
        chances: Whether a sigmoid made the numbers.
    """
    xp = namespace(wanted)
    found, wanted = (xp.reshape(part, (-1, part.shape[-1])) for part in (found, wanted))
    kind = divergence_of(wanted, name, chances=chances)
    return xp.mean(kind.values(*aligned(found, wanted)))


def aligned(found: Array, wanted: Array) -> tuple[Array, Array]:
    """Both without classes that the dense model rules out by logits of −∞."""
    xp = namespace(found)
    counts = xp.isfinite(wanted)
    return xp.where(counts, found, RULED_OUT), xp.where(counts, wanted, RULED_OUT)


def random_signs(rng: np.random.Generator, like: Array) -> Array:
    """Random signs as an array of the same kind, shape and device."""
    xp = namespace(like)
    drawn = rng.integers(0, 2, size=tuple(like.shape), dtype=np.int8) * 2 - 1
    return xp.astype(xp.asarray(drawn, device=device(like)), like.dtype)


def log_softmax(rows: Array) -> Array:
    """Logarithm of the softmax over the last axis."""
    xp = namespace(rows)
    shifted = rows - xp.max(rows, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def softmax(rows: Array) -> Array:
    """Softmax over the last axis."""
    return namespace(rows).exp(log_softmax(rows))


def sigmoid(rows: Array) -> Array:
    """Logistic function."""
    xp = namespace(rows)
    return xp.exp(-_softplus(-rows))


def _softplus(rows: Array) -> Array:
    xp = namespace(rows)
    return xp.log1p(xp.exp(-xp.abs(rows))) + (rows + xp.abs(rows)) / 2


def _inside(rows: Array) -> Array:
    return namespace(rows).clip(rows, TINY, 1.0)


def _unit(rows: Array) -> tuple[Array, Array]:
    xp = namespace(rows)
    length = xp.sqrt(xp.sum(rows**2, axis=-1, keepdims=True)) + TINY
    return rows / length, length
