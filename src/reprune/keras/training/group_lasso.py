"""ISS group lasso in Keras: see `core.training.group_lasso`; the penalty's derivative is added to the gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from reprune.core.budget.budget import Budget
from reprune.core.budget.cost import CostModel
from reprune.core.layers import Structure
from reprune.core.methods import Method
from reprune.core.plan import Plan
from reprune.core.training.group_lasso import DEAD, Pull, share_gone
from reprune.core.units import UnitIndex
from reprune.keras.tracing.graph import array, graph_of
from reprune.keras.training.technique import Technique

TINY = 1e-30


class GroupLasso(Technique):
    """λ Σ_u ‖ISS_u‖₂ over all units that can be removed, coupled units together, with λ found for the ratio.

    Its derivative by a weight is λ W Σ_u 1 / ‖ISS_u‖₂ over the units u that the weight belongs to, and 0 where that is.
    """

    changes_gradients = True

    def __init__(self, model: Any, structure: Structure, method: str | Method, budget: Budget, seed: int) -> None:
        super().__init__(model, structure, method, budget, seed)
        self.pull = Pull()
        self._total = CostModel(structure)(budget.of, structure.counts())
        self._lengths = IssLengths(structure)
        self._start = self._measured()
        self._settle(self._start)

    def _settle(self, now: np.ndarray[Any, Any]) -> None:
        """Variables of the compiled step: the lengths, the penalty on each kind of unit, what counts as gone."""
        self._now = keras.Variable(now.astype("float32"), trainable=False, name="iss_lengths")
        self._on_units = keras.Variable(np.array(self.pull.on_units, "float32"), trainable=False, name="penalty")
        self._limit = float(DEAD * self._start.mean()) if len(self._start) else 0.0

    def _measured(self) -> np.ndarray[Any, Any]:
        return np.asarray(array(self._lengths(graph_of(self.model).weights())), dtype="float64")

    def gradients(self, gradients: list[Any], variables: Sequence[Any]) -> list[Any]:
        """See `Technique.gradients`."""
        weights = graph_of(self.model).weights()
        names = {id(weight): name for name, weight in weights.items()}
        lengths = self._lengths(weights)
        self._now.assign(ops.cast(lengths, "float32"))
        strength = ops.where(self._now > self._limit, self._on_units[0], self._on_units[1])
        pull = ops.append(ops.cast(strength, lengths.dtype) / lengths, ops.zeros((1,), lengths.dtype))
        found = []
        for gradient, variable in zip(gradients, variables, strict=True):
            name = names.get(id(variable), "")
            if gradient is not None and name in self._lengths.axes:
                value = ops.convert_to_tensor(variable)
                gradient = gradient + ops.cast(value * self._lengths.spread(name, pull), gradient.dtype)
            found.append(gradient)
        return found

    def loss(self) -> float:
        """See `Technique.loss`."""
        left, gone = self.pull.on_units
        now = np.asarray(array(self._now), dtype="float64")
        return float(np.where(now > self._limit, left * now, gone * now).sum())

    def stepped(self, share: float) -> None:
        """Let λ grow. See `Technique.stepped`."""
        self.pull.step(share * (self.budget.ratio or 0.0) - self.gone())
        self._on_units.assign(np.array(self.pull.on_units, "float32"))

    def gone(self) -> float:
        """Fraction of the budget's measure that units as good as zero hold."""
        alive = array(self._now) > self._limit
        return share_gone(self.structure, self._lengths.index, alive, self.budget.of, self._total)

    def decide(self, budget: Budget) -> Plan:
        """The shortest go, by the root mean square of their weights. See `Technique.decide`."""
        lengths = self._measured() / np.sqrt(self._lengths.weights)
        return self._decide_by(self._lengths.index.by_layer(lengths), budget)

    def shrunk(self, structure: Structure, kept: Mapping[str, Sequence[int]]) -> None:
        """See `Technique.shrunk`."""
        stay = self._lengths.index.kept(kept)
        now = np.asarray(array(self._now))[stay]
        super().shrunk(structure, kept)
        self._lengths = IssLengths(structure)
        self._start = self._start[stay]
        self._settle(now)

    def state_dict(self) -> dict[str, Any]:
        """See `Technique.state_dict`."""
        return {
            "strength": self.pull.strength,
            "missing": self.pull.missing,
            "start": self._start.tolist(),
            "now": array(self._now).tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Technique.load_state_dict`."""
        self.pull.strength, self.pull.missing = float(state["strength"]), float(state["missing"])
        self._start = np.asarray(state["start"])
        self._settle(np.asarray(state["now"]))


class IssLengths:
    """Length of the intrinsic sparse structure of every unit.

    It holds every slice of every weight that knows the unit: its part of all gates, its row of its own recurrent matrix
    and of every consumer, its entries in gains on the way. A weight that two slices of one unit share, on the diagonal
    of a recurrent matrix, counts once.

    Attributes:
        index: Numbers of the units.
        axes: For every weight, its axes and the number of the unit at each position.
        weights: How many numbers each structure holds (units).
    """

    def __init__(self, structure: Structure) -> None:
        self.index = UnitIndex(structure)
        self.axes = self.index.axes(structure, structure.slots)
        self._ranks = {name: len(structure.shapes[name]) for name in self.axes}
        ones = {name: ops.ones(structure.shapes[name]) for name in self.axes}
        self.weights = np.asarray(array(self._sums(ones)), dtype="float64")

    def __call__(self, weights: Mapping[str, Any]) -> Any:
        """Lengths (units) of the structures in these weights."""
        squares = self._sums({name: ops.square(ops.convert_to_tensor(weights[name])) for name in self.axes})
        return ops.sqrt(ops.maximum(squares, TINY))

    def _sums(self, values: Mapping[str, Any]) -> Any:
        total: Any = 0.0
        for name, value in values.items():
            for axis, numbers in self.axes[name]:
                total = total + self._by_unit(value, axis, numbers)
            if len(self.axes[name]) == 2:
                (axis, numbers), _ = self.axes[name]
                total = total - self._by_unit(value * ops.cast(self._shared(name), value.dtype), axis, numbers)
        return total[:-1]

    def _by_unit(self, value: Any, axis: int, numbers: np.ndarray[Any, Any]) -> Any:
        others = [other for other in range(len(value.shape)) if other != axis]
        rows = ops.sum(value, axis=others) if others else value
        return ops.segment_sum(rows, numbers.astype("int32"), num_segments=self.index.size + 1)

    def spread(self, name: str, values: Any) -> Any:
        """For every number of a weight, the sum of values (units + 1) over the units that it belongs to."""
        rank = self._ranks[name]
        total: Any = 0.0
        for axis, numbers in self.axes[name]:
            total = total + ops.reshape(ops.take(values, numbers), _along(axis, rank))
        if len(self.axes[name]) == 2:
            (axis, numbers), _ = self.axes[name]
            once = ops.reshape(ops.take(values, numbers), _along(axis, rank))
            total = total - once * ops.cast(self._shared(name), once.dtype)
        return total

    def _shared(self, name: str) -> Any:
        """Where both axes of a weight name the same unit."""
        (one, rows), (other, columns) = self.axes[name]
        rank = self._ranks[name]
        first, second = rows.reshape(_along(one, rank)), columns.reshape(_along(other, rank))
        return ops.logical_and(ops.equal(first, second), ops.not_equal(first, self.index.size))


def _along(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(-1 if place == axis else 1 for place in range(rank))
