"""Gates that do on the pruned model's own inputs and states what the dense model's did: regressions, forward only.

Folding rebuilds what the removed units carried one consumer at a time, from the dense model's responses. In the pruned
model errors go round, and inputs and states are off together. With z the pruned model's own input and state (and a 1
for each bias) and a the dense model's pre-activation of a gate of a kept unit, its row w changes by the d of the least

    Σ ω (a − (w + d) z)² + ε d² diag Σ ω z²,    ω = (∂h/∂a)² + 0.02 of its mean,

so that a gate which is shut, where nothing depends on a, counts little. Lower layers come first, as those above read
what they answer. States change with the rows that they were regressed on, and the full step may overshoot: of two
lengths, that one is taken whose answers are nearest to the dense model's on rows held out, or none.

The new gate of a GRU is a = a_x + r a_h with the reset gate r: there z holds r times the state, with the dense model's
r.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from reprune.core.answers.answers import Answers
from reprune.core.answers.divergence import sigmoid
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
ROWS = 8192
"""Rows of a layer that are regressed on, about."""
PASSES = 8
"""Batches that they come from, at most."""
JUDGED = 32
"""Batches that steps are judged by, at most."""
WORK = 5e11
"""Multiplications that a layer's regressions may take: a few seconds, some 250 units."""


class Targets(NamedTuple):
    """What the gates of a layer did in the dense model (N time steps × gate rows).

    Attributes:
        wanted: Pre-activations a.
        slopes: Derivatives ∂h/∂a of the unit's response.
        reset: What the part of a that comes from the state is multiplied with, or None if with nothing.
    """

    wanted: Array
    slopes: Array
    reset: Array | None = None

    def take(self, steps: Any, rows: Any) -> Targets:
        """Some steps, of some rows."""
        return Targets(*(None if part is None else part[steps][:, rows] for part in self))


def targets(
    cell: str, incoming: Array, recurrent: Array, state: Array, memory: Array | None, sizes: Sequence[int]
) -> Targets:
    """What gates do, time step by time step.

    Args:
        cell: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`, with the gates in PyTorch's order.
        incoming: Part of the pre-activations that comes from the input, with its bias (N × gate rows).
        recurrent: The part that comes from the state, likewise.
        state: The states before the steps (N × units).
        memory: `c` of an LSTM before the first step (sequences × units).
        sizes: How many sequences there are at every step; they add up to N.
    """
    return _TARGETS[cell](incoming, recurrent, state, memory, sizes)


def _lstm(incoming: Array, recurrent: Array, state: Array, memory: Array | None, sizes: Sequence[int]) -> Targets:
    xp, units = array_namespace(incoming), state.shape[1]
    wanted = incoming + recurrent
    into, keep, new, out = (wanted[:, place * units : (place + 1) * units] for place in range(4))
    into, keep, new, out = sigmoid(into), sigmoid(keep), xp.tanh(new), sigmoid(out)
    before: list[Array] = []
    after: list[Array] = []
    start = 0
    for size in sizes:
        held = memory[:size] if not after else after[-1][:size]  # type: ignore[index]
        here = slice(start, start + size)
        before.append(held)
        after.append(keep[here] * held + into[here] * new[here])
        start += size
    earlier, shown = xp.concat(before), xp.tanh(xp.concat(after))
    through = out * (1 - shown**2)
    slopes = (
        through * new * into * (1 - into),
        through * earlier * keep * (1 - keep),
        through * into * (1 - new**2),
        shown * out * (1 - out),
    )
    return Targets(wanted, xp.concat(slopes, axis=1))


def _gru(incoming: Array, recurrent: Array, state: Array, memory: Array | None, sizes: Sequence[int]) -> Targets:
    xp, units = array_namespace(incoming), state.shape[1]
    gates = sigmoid(incoming[:, : 2 * units] + recurrent[:, : 2 * units])
    reset, keep, fed = gates[:, :units], gates[:, units:], recurrent[:, 2 * units :]
    inner = incoming[:, 2 * units :] + reset * fed
    new = xp.tanh(inner)
    through = (1 - keep) * (1 - new**2)
    slopes = (through * fed * reset * (1 - reset), (state - new) * keep * (1 - keep), through)
    wanted = xp.concat((incoming[:, : 2 * units] + recurrent[:, : 2 * units], inner), axis=1)
    whole = xp.ones_like(gates)
    return Targets(wanted, xp.concat(slopes, axis=1), xp.concat((whole, reset), axis=1))


def _tanh(incoming: Array, recurrent: Array, state: Array, memory: Array | None, sizes: Sequence[int]) -> Targets:
    wanted = incoming + recurrent
    return Targets(wanted, 1 - array_namespace(wanted).tanh(wanted) ** 2)


def _relu(incoming: Array, recurrent: Array, state: Array, memory: Array | None, sizes: Sequence[int]) -> Targets:
    wanted = incoming + recurrent
    return Targets(wanted, array_namespace(wanted).astype(wanted > 0, wanted.dtype))


_TARGETS: dict[str, Callable[..., Targets]] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _tanh, "rnn_relu": _relu}


def affordable(rows: int, width: int) -> bool:
    """Whether so many gate rows can be regressed on so many features in reasonable time."""
    return rows * width**2 * ROWS <= WORK


def regressed(read: Array, state: Array, held: tuple[Matrix, Matrix], wanted: Targets) -> tuple[Matrix, Matrix]:
    """The steps of a layer's rows.

    Args:
        read: What the pruned layer reads, with a last entry of 1 if it has biases (N × inputs).
        state: Its states before the steps, likewise (N × states).
        held: Its rows for both (gate rows × inputs, gate rows × states).
        wanted: What the same rows do in the dense model.

    Returns:
        What is to be added to both.
    """
    xp = array_namespace(read)
    found = []
    for row in range(wanted.wanted.shape[1]):
        reset = 1.0 if wanted.reset is None else wanted.reset[:, row : row + 1]
        weights = wanted.slopes[:, row : row + 1] ** 2
        root = xp.sqrt(weights + FLOOR * xp.mean(weights))
        features = xp.concat((read, reset * state), axis=1)
        rows = xp.asarray(np.concatenate([part[row] for part in held])[:, None], dtype=read.dtype, device=device(read))
        rest = root * (wanted.wanted[:, row : row + 1] - features @ rows)
        features = root * features
        matrix, target = (xp.astype(features.T @ part, xp.float64) for part in (features, rest))
        level = RIDGE * xp.linalg.diagonal(matrix)
        # What never happened is left alone.
        level = level + np.finfo(np.float64).tiny + np.finfo(np.float64).eps * xp.max(level)
        found.append(
            to_numpy(
                xp.linalg.solve(matrix + level * xp.eye(len(level), dtype=matrix.dtype, device=device(read)), target)
            )[:, 0]
        )
    whole = np.stack(found)
    return whole[:, : read.shape[1]], whole[:, read.shape[1] :]


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
