"""Consumers that answer like the dense model: a few Gauss-Newton steps on the divergence from its answers.

Least squares makes consumers compute what they did; what counts is what the model answers. With W (o × n, its bias as a
last column) reading z of the pruned model, L the mean divergence over N rows of answers and s = ∂L/∂(W z) per row, the
gradient is Σ s zᵀ / N and the curvature about A ⊗ S (Kronecker), with A = mean z zᵀ, S = Σ s̃ s̃ᵀ / N, where s̃ = Jᵀ v for
random v whose mean square is the curvature of the divergence. S comes from gradients of the weights alone: those of v
are ∇̃ = Σ s̃ zᵀ, and E[∇̃ A⁻¹ ∇̃ᵀ] = n Σ s̃ s̃ᵀ, as zᵀ A⁻¹ z is n on average and different rows have independent signs.

J. Martens, R. Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature" (ICML 2015) has the
factors; here they serve a convex or nearly convex problem in few weights, without labels, and a step is taken only if
rows that it was not fitted to say that it is good.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, Protocol

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from reprune.core.answers.answers import Answers
from reprune.core.evidence.moments import to_numpy
from reprune.core.evidence.readings import Matrix
from reprune.core.layers import WIDTHS, Consumer, Structure
from reprune.core.progress import told

Array = Any

SWEEPS = 6
DAMPINGS = (0.01, 0.1, 1.0)
"""Added to each factor, as shares of its diagonal."""
LENGTHS = (0.3, 1.0)
"""Lengths of a step that are tried: with every damping at first, then with the one that did best."""
WIDE = 1024
"""Outputs beyond which of S only the diagonal is kept."""
ROUNDING = 1e-6
"""The same, so that there is an inverse at all."""
ENOUGH = 1e-3
"""A sweep that lowers the divergence by less than this share of it is the last one."""


Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Refitted:
    """A weight that is refitted.

    Attributes:
        tensor: Its name.
        axis: The axis that is contracted with what it reads.
        bias: Name of a bias with one entry for each of the other positions, or None.
        moments: A: mean of z zᵀ, with a last entry of z that is 1 if there is a bias (n × n).
    """

    tensor: str
    axis: int
    bias: str | None
    moments: Matrix

    def matrix(self, tensors: Tensors) -> Matrix:
        """W, or something of the same shape, out of tensors by name (o × n)."""
        columns = np.moveaxis(tensors[self.tensor], self.axis, -1)
        columns = columns.reshape(-1, columns.shape[-1])
        return columns if self.bias is None else np.column_stack([columns, tensors[self.bias]])

    def moved(self, tensors: Tensors, step: Matrix) -> Tensors:
        """The tensors after a step."""
        weight = tensors[self.tensor]
        columns = step if self.bias is None else step[:, :-1]
        turned = np.moveaxis(weight, self.axis, -1).shape
        found = {self.tensor: weight + np.moveaxis(columns.reshape(turned), -1, self.axis)}
        return found if self.bias is None else {**found, self.bias: tensors[self.bias] + step[:, -1]}


class Seen:
    """Second moments of what consumers read, added up over batches.

    Args:
        consumers: The consumers, each of a tensor of its own.
        shapes: Shapes of all tensors by name.
    """

    def __init__(self, consumers: Sequence[Consumer], shapes: Mapping[str, Sequence[int]]) -> None:
        self._consumers = consumers
        self._biases = {c.tensor: c.bias if _one_each(shapes, c) else None for c in consumers}
        self._sums: dict[str, Matrix] = {}
        self._rows: dict[str, int] = {}

    def add(self, tensor: str, rows: Array) -> None:
        """What a consumer read (n × features)."""
        xp = array_namespace(rows)
        rows = xp.astype(rows, xp.float64)
        if self._biases[tensor] is not None:
            rows = xp.concat([rows, xp.ones_like(rows[:, :1])], axis=1)
        self._sums[tensor] = self._sums.get(tensor, 0.0) + to_numpy(rows.T @ rows)
        self._rows[tensor] = self._rows.get(tensor, 0) + rows.shape[0]

    def weights(self) -> list[Refitted]:
        """The consumers that something was seen of."""
        return [
            Refitted(c.tensor, c.axis, self._biases[c.tensor], self._sums[c.tensor] / self._rows[c.tensor])
            for c in self._consumers
            if self._rows.get(c.tensor)
        ]


def _one_each(shapes: Mapping[str, Sequence[int]], consumer: Consumer) -> bool:
    """Whether the consumer's bias has one entry for each of its outputs."""
    weight, bias = shapes[consumer.tensor], shapes.get(consumer.bias or "")
    return bias is not None and len(weight) == 2 and tuple(bias) == (weight[1 - consumer.axis],)


def last_consumers(
    structure: Structure, known: Collection[str], responses: Callable[[Sequence[Consumer]], object]
) -> list[Consumer]:
    """Consumers that nothing recurrent comes after: whatever they hold, all layers respond as they did.

    Args:
        structure: What a trace of the model would find.
        known: Names of the tensors that can be set.
        responses: Something that tells the layers' responses from others, while these consumers hold something else.
    """
    own = {
        slot.tensor
        for name, layer in structure.layers.items()
        if layer.cell not in WIDTHS
        for slot in structure.slots_of(name, "own")
    }
    by_tensor = {c.tensor: c for c in structure.consumers if c.tensor in known and c.tensor not in own}
    found = list(by_tensor.values())
    before = responses([])
    if not found or responses(found) == before:
        return found
    return [consumer for consumer in found if responses([consumer]) == before]


class Pupil(Protocol):
    """The pruned model, as its framework runs it."""

    @property
    def weights(self) -> Sequence[Refitted]:
        """What can be refitted: consumers that nothing recurrent comes after."""

    def run(self, place: int) -> Sequence[Array]:
        """The output tensors of a batch of the dense answers."""

    def read(self, names: Sequence[str]) -> Tensors:
        """Weights by name."""

    def write(self, tensors: Tensors) -> None:
        """Set weights."""

    def gradients(self, names: Sequence[str], rng: np.random.Generator) -> Iterator[tuple[Tensors, Tensors]]:
        """For every batch, gradients of the mean divergence of the rows to fit, and of its random projection.

        Nothing where the model has no gradient.
        """


def refit(pupil: Pupil, answers: Answers, rng: np.random.Generator) -> tuple[float, Tensors]:
    """Refit weights in place.

    Args:
        pupil: The pruned model.
        answers: Those of the dense one.
        rng: Source of the random projections.

    Returns:
        The divergence of the rows to judge by, and the tensors that have changed.
    """

    def judged() -> float:
        return answers.divergence(pupil.run, answers.places, "judged")

    names = [name for weight in pupil.weights for name in (weight.tensor, weight.bias) if name is not None]
    best = judged()
    if not names:
        return best, {}
    start = pupil.read(names)
    held = first = {name: value.astype(np.float64) for name, value in start.items()}
    factors = [_Factor(weight.moments) for weight in pupil.weights]
    dampings: tuple[float, ...] = DAMPINGS
    for _ in told("refitting", range(SWEEPS), SWEEPS):
        steps = _steps(pupil, factors, rng, names)
        if not steps:
            break
        taken, lowest = held, best
        for damping, length in product(dampings, LENGTHS):
            trial = dict(held)
            for weight, step in zip(pupil.weights, steps, strict=True):
                trial.update(weight.moved(trial, -length * step(damping)))
            pupil.write(trial)
            value = judged()
            if value < lowest:
                taken, lowest, dampings = trial, value, (damping,)
        pupil.write(taken)
        done = best - lowest <= ENOUGH * best
        held, best = taken, lowest
        if done:
            break
    return best, {} if held is first else {name: value.astype(start[name].dtype) for name, value in held.items()}


def _steps(
    pupil: Pupil, factors: Sequence[_Factor], rng: np.random.Generator, names: Sequence[str]
) -> list[Callable[[float], Matrix]]:
    """For every weight, the step of a damping (o × n); none without a gradient."""
    gradients = [np.zeros(1) for _ in factors]
    curvatures = [np.zeros(1) for _ in factors]
    seen = False
    for gradient, projected in pupil.gradients(names, rng):
        seen = True
        for place, (weight, factor) in enumerate(zip(pupil.weights, factors, strict=True)):
            gradients[place] = gradients[place] + weight.matrix(gradient)
            drawn = weight.matrix(projected)
            solved = factor.solve(drawn, ROUNDING)
            outer = np.sum(solved * drawn, axis=1) if len(drawn) > WIDE else solved @ drawn.T
            curvatures[place] = curvatures[place] + outer / drawn.shape[1]

    def step(place: int) -> Callable[[float], Matrix]:
        side = _Factor(curvatures[place])
        return cache(lambda damping: factors[place].solve(side.solve(gradients[place].T, damping).T, damping))

    return [step(place) for place in range(len(factors))] if seen else []


class _Factor:
    """A symmetric matrix to divide by, or its diagonal; sweeps and batches share its inverses."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._diagonal = np.maximum(matrix if matrix.ndim == 1 else matrix.diagonal(), 0.0)
        self._inverses: dict[float, NDArray[Any]] = {}

    def solve(self, rows: Matrix, damping: float) -> Matrix:
        """rows (M + damping · diag M)⁻¹ (m × n)."""
        # A direction in which nothing ever happened is left alone, rather than divided by zero.
        rounding = max(ROUNDING * float(np.mean(self._diagonal)), np.finfo(np.float64).tiny)
        level = damping * self._diagonal + rounding
        if self._matrix.ndim == 1:
            return np.asarray(rows / (self._diagonal + level))
        if damping not in self._inverses:
            self._inverses[damping] = np.linalg.inv(self._matrix + np.diag(level))
        return np.asarray(rows @ self._inverses[damping])
