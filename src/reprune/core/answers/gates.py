"""Gates that do on the pruned model's own inputs and states what the dense model's did: regressions, forward only.

Folding rebuilds what the removed units carried one consumer at a time, from the dense model's responses. In the pruned
model errors go round, and inputs and states are off together. With z the pruned model's own input and state (and a 1
for each bias) and a the dense model's pre-activation of a gate of a kept unit, its row w changes by the d of the least

    Σ ω (a − (w + d) z)² + ε d² diag Σ ω z²,    ω = (∂h/∂a)² + 0.02 of its mean,

so that a gate which is shut, where nothing depends on a, counts little. Lower layers come first, as those above read
what they answer. States change with the rows that they were regressed on, and the full step may overshoot: of two
lengths, that one is taken whose answers are nearest to the dense model's on rows held out, or none.

The new gate of a GRU is a = a_x + r a_h with the reset gate r: there z holds r times the state, with the dense model's
r. A GRU that resets before the product, as Keras has it, has a = a_x + W (r h): there z holds r h, unit by unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from reprune.core.answers.answers import Answers
from reprune.core.answers.gate_targets import Steps, Targets, targets
from reprune.core.answers.gauss_newton import Tensors
from reprune.core.evidence.moments import to_numpy
from reprune.core.evidence.readings import Matrix
from reprune.core.progress import told

Array = Any

LENGTHS = (1.0, 0.5)
"""Lengths of a step that are tried."""
FLOOR = 0.02
"""What is added to the squared slopes, as a share of their mean."""
RIDGE = 1e-3
ROWS, MOST = 8192, 32768
"""Rows of a layer that are regressed on, about: the first at least, and of small layers up to the second."""
PASSES = 8
"""Batches that they come from, at most."""
JUDGED = 32
"""Batches that steps are judged by, at most."""
WORK = 5e11
"""Multiplications that a layer's regressions may take: a few seconds, some 250 units."""


def affordable(rows: int, width: int) -> bool:
    """Whether so many gate rows can be regressed on so many features in reasonable time."""
    return rows * width**2 * ROWS <= WORK


def _steps_of(rows: int, width: int) -> int:
    """How many time steps they are regressed on."""
    return max(min(int(WORK / (rows * width**2)), MOST), ROWS)


def regressed(
    read: Array, state: Array, held: tuple[Matrix, Matrix], wanted: Targets, *, before: bool
) -> tuple[Matrix, Matrix]:
    """The steps of a layer's rows.

    Args:
        read: What the pruned layer reads, with a last entry of 1 if it has biases (N × inputs).
        state: Its states before the steps, likewise (N × states).
        held: Its rows for both (gate rows × inputs, gate rows × states).
        wanted: What the same rows do in the dense model.
        before: Whether states are reset before the product.

    Returns:
        What is to be added to both.
    """
    xp = array_namespace(read)
    found = []
    for row in range(wanted.wanted.shape[1]):
        reset = 1.0 if wanted.reset is None else wanted.reset[:, _resets(row, state.shape[1], before)]
        weights = wanted.slopes[:, row] ** 2
        root = xp.sqrt(weights + FLOOR * xp.mean(weights))
        features = xp.concat((read, reset * state), axis=1)
        rows = xp.asarray(np.concatenate([part[row] for part in held]), dtype=read.dtype, device=device(read))
        rest = root * (wanted.wanted[:, row] - features @ rows)
        features = root[:, None] * features
        matrix, target = (xp.astype(features.T @ part, xp.float64) for part in (features, rest))
        level = RIDGE * xp.linalg.diagonal(matrix)
        # What never happened is left alone.
        level = level + np.finfo(np.float64).tiny + np.finfo(np.float64).eps * xp.max(level)
        ridge = level * xp.eye(len(level), dtype=matrix.dtype, device=device(read))
        found.append(to_numpy(xp.linalg.solve(matrix + ridge, target)))
    whole = np.stack(found)
    return whole[:, : read.shape[1]], whole[:, read.shape[1] :]


def _resets(row: int, units: int, before: bool) -> slice:
    """Whose resets the states are multiplied with: the row's own, or those of all units, which lie side by side."""
    return slice(row // units * units, (row // units + 1) * units) if before else slice(row, row + 1)


class _Aim(NamedTuple):
    """What a layer did in one call: its cell, how many steps it took, which of them are looked at, and those."""

    cell: str
    steps: int
    chosen: Array
    targets: Targets


class Aims:
    """What the gates of some layers did in the dense model, and what their rows in the pruned one need to do so.

    Args:
        batches: How many batches are shown.
    """

    def __init__(self, batches: int) -> None:
        self._batches, self._aims = batches, dict[str, list[_Aim]]()

    @property
    def layers(self) -> list[str]:
        """Layers that were shown, in that order."""
        return list(self._aims)

    def add(self, layer: str, cell: str, weights: Sequence[Array], steps: Steps, stay: NDArray[np.int64]) -> None:
        """A call of a layer in the dense model.

        Args:
            layer: Its name.
            cell: See `targets`.
            weights: Likewise.
            steps: Likewise.
            stay: Gate rows that stay in the pruned model.
        """
        xp, held = array_namespace(steps.read), self._aims.setdefault(layer, [])
        width = steps.read.shape[1] + steps.state.shape[1]
        share = _steps_of(len(stay), width) // self._batches
        drawn = np.random.default_rng(len(held)).permutation(len(steps.read))[:share]
        chosen, rows = (xp.asarray(part, device=device(steps.read)) for part in (drawn, stay))
        found = targets(cell, weights, steps).take(chosen, rows)
        held.append(_Aim(cell, len(steps.read), chosen, found))

    def steps(self, layer: str, weights: Sequence[Matrix], seen: Sequence[Steps]) -> list[Matrix]:
        """What is to be added to the weights of a layer in the pruned model; nothing if it took other steps.

        Args:
            layer: Its name.
            weights: As they are, as in `targets`.
            seen: Its calls in the pruned model, for the same batches.
        """
        aims = self._aims[layer]
        # A loop that ends when the model says so takes other steps in both.
        if [len(steps.read) for steps in seen] != [aim.steps for aim in aims]:
            return []
        xp, biases = array_namespace(seen[0].read), weights[2:]
        read, state = (
            xp.concat([_with_one(part[aim.chosen], len(biases) > place) for part, aim in zip(parts, aims, strict=True)])
            for place, parts in enumerate(([steps.read for steps in seen], [steps.state for steps in seen]))
        )
        parts = zip(*(aim.targets for aim in aims), strict=True)
        wanted = Targets(*(None if part[0] is None else xp.concat(part) for part in parts))
        rows = [np.column_stack(weights[place::2]).astype(np.float64) for place in range(2)]
        found = regressed(read, state, (rows[0], rows[1]), wanted, before=aims[0].cell == "gru_before")
        matrices = [step[:, : weight.shape[1]] for step, weight in zip(found, weights[:2], strict=True)]
        return [*matrices, *(step[:, -1] for step, _ in zip(found, biases, strict=False))]


def _with_one(rows: Array, biased: bool) -> Array:
    xp = array_namespace(rows)
    return xp.concat((rows, xp.ones_like(rows[:, :1])), axis=1) if biased else rows


def spread(places: Sequence[int], most: int) -> Sequence[int]:
    """At most so many of some places, evenly spread."""
    return places[:: -(-len(places) // most)]


class Learner(Protocol):
    """The pruned model beside the dense one, as their framework runs them."""

    @property
    def layers(self) -> Sequence[str]:
        """Layers whose gates can be refitted, lower ones first."""

    @property
    def places(self) -> Sequence[int]:
        """Batches of the dense answers to judge by."""

    def run(self, place: int) -> Sequence[Array]:
        """The output tensors of the pruned model for one of these batches."""

    def step(self, layer: str) -> Tensors:
        """What is to be added to a layer's weights, by name; nothing where that is not known."""

    def read(self, names: Sequence[str]) -> Tensors:
        """Weights by name."""

    def write(self, tensors: Tensors) -> None:
        """Set weights."""


def refit_gates(learner: Learner, answers: Answers) -> Tensors:
    """Refit gates in place, layer by layer.

    Returns:
        The tensors that have changed.
    """

    def judged() -> float:
        return answers.divergence(learner.run, learner.places, "judged")

    changed: dict[str, NDArray[Any]] = {}
    best = judged() if learner.layers else 0.0
    for layer in told("refitting gates", learner.layers, len(learner.layers)):
        step = learner.step(layer)
        held = taken = learner.read(list(step))
        for length in LENGTHS if step else ():
            trial = {name: (value + length * step[name]).astype(value.dtype) for name, value in held.items()}
            learner.write(trial)
            value = judged()
            if value < best:
                taken, best = trial, value
        learner.write(taken)
        changed |= {} if taken is held else taken
    return changed
