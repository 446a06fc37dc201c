"""Neuron selection in Keras: see `core.training.hard_concrete`; gates multiply weights on their way into the model.

The gates' gradient needs no tape of its own. A weight W enters as W' = W z, so W · ∂L/∂W = W' · ∂L/∂W', and the sum of
that over all weights that a unit's gate z multiplies is z · ∂L/∂z. Where z is 0, it does not depend on log α.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from reprune.core.budget.budget import Budget
from reprune.core.budget.cost import CostModel
from reprune.core.layers import Structure
from reprune.core.methods import Method
from reprune.core.plan import Plan
from reprune.core.training.hard_concrete import SLACK, START, START_STRENGTH, Gates, grown, penalty_slope
from reprune.core.units import UnitIndex
from reprune.keras.tracing.graph import array, graph_of
from reprune.keras.training.technique import Technique

Vector = np.ndarray[Any, Any]


class NeuronSelection(Technique):
    """Gates on all units that can be removed, one for coupled units, trained by an optimiser of their own.

    Passes in training mode use gates drawn at random before each step, others take them without noise.
    """

    changes_gradients = True
    takes_inputs = True

    def __init__(self, model: Any, structure: Structure, method: str | Method, budget: Budget, seed: int) -> None:
        super().__init__(model, structure, method, budget, seed)
        self._rng = np.random.default_rng(seed)
        self._total = CostModel(structure)(budget.of, structure.counts())
        self._target = budget.ratio or 0.0
        self.strength = START_STRENGTH
        self._settle(structure, Gates(np.full(UnitIndex(structure).size, START)))

    def _settle(self, structure: Structure, gates: Gates) -> None:
        self._index = UnitIndex(structure)
        # Units that are also read without a weight are silenced at their source, as the masked model does.
        direct = {name for name, layer in structure.layers.items() if layer.direct}
        slots = [
            slot
            for slot in structure.slots
            if slot.role == "reads" or (slot.role == "own" and {span.layer for span in slot.spans} & direct)
        ]
        self._gated = self._index.axes(structure, slots)
        self.gates = gates
        # One more: what holds no unit is not gated.
        size = (self._index.size + 1,)
        self._drawn, self._plain, self._products = (
            keras.Variable(np.ones(size, "float32"), trainable=False, name=name)
            for name in ("drawn_gates", "gates", "gate_products")
        )
        self._draw()

    def _draw(self) -> None:
        """New gates for the coming step."""
        noise = self._rng.random(self._index.size).clip(1e-6, 1 - 1e-6)
        self._sample, self._slope = self.gates.sampled(noise)
        for variable, values in ((self._drawn, self._sample), (self._plain, self.gates.settled())):
            variable.assign(np.append(values, 1.0).astype("float32"))

    @contextmanager
    def around(self, training: bool) -> Iterator[None]:
        """Gate the weights during a pass. See `Technique.around`."""
        gates = ops.convert_to_tensor(self._drawn if training else self._plain)
        weights = graph_of(self.model).weights()
        gated = [(weights[name], self._times(weights[name], name, gates)) for name in self._gated]
        with keras.StatelessScope(state_mapping=gated) as scope:
            yield
        # What layers noted in the pass, such as running means, goes where it belongs.
        own = {id(weight) for weight, _ in gated}
        for variable in self.model.variables:
            if id(variable) in scope.state_mapping and id(variable) not in own:
                variable.assign(scope.get_current_value(variable))

    def _times(self, weight: Any, name: str, gates: Any) -> Any:
        """A weight with its axes multiplied by the gates of the units along them."""
        value = ops.convert_to_tensor(weight)
        for axis, numbers in self._gated[name]:
            shape = [-1 if place == axis else 1 for place in range(len(value.shape))]
            value = value * ops.cast(ops.reshape(ops.take(gates, numbers), shape), value.dtype)
        return value

    def gradients(self, gradients: list[Any], variables: Sequence[Any]) -> list[Any]:
        """Note what they say of the gates. See `Technique.gradients`."""
        names = graph_of(self.model).weight_names()
        total = ops.zeros((self._index.size + 1,), "float32")
        for gradient, variable in zip(gradients, variables, strict=True):
            for axis, numbers in self._gated.get(names.get(id(variable), ""), ()) if gradient is not None else ():
                product = ops.cast(ops.convert_to_tensor(variable) * ops.convert_to_tensor(gradient), "float32")
                others = [other for other in range(len(product.shape)) if other != axis]
                rows = ops.sum(product, axis=others) if others else product
                total = total + ops.segment_sum(rows, numbers.astype("int32"), num_segments=self._index.size + 1)
        self._products.assign(total)
        return gradients

    def loss(self) -> float:
        """μ (|d| − SLACK / 2), or μ d² / (2 SLACK) where |d| < SLACK. See `Technique.loss`."""
        far = abs(self._missing())
        return self.strength * (far - SLACK / 2 if far > SLACK else far**2 / (2 * SLACK))

    def stepped(self, share: float) -> None:
        """Let the gates take a step as well, and μ grow. See `Technique.stepped`."""
        self._target = share * (self.budget.ratio or 0.0)
        products = np.asarray(array(self._products), dtype="float64")[:-1]
        by_gate = np.divide(products, self._sample, out=np.zeros_like(products), where=self._sample > 0)
        penalty = penalty_slope(self._missing(), self.strength) * self._removed()[1]
        gradient = by_gate * self._slope - penalty
        if np.isfinite(gradient).all():
            self.gates.step(gradient)
        self.strength = grown(self.strength, self._missing())
        self._draw()

    def _missing(self) -> float:
        return self._target - self._removed()[0]

    def _removed(self) -> tuple[float, Vector]:
        """Expected fraction of the budget's measure that closed gates remove, and its derivative by log α."""
        opening, slope = self.gates.opening()
        cost = CostModel(self.structure)
        counts: dict[str, float] = dict(self.structure.counts())
        for group, (first, units) in self._index.groups.items():
            counts.update(dict.fromkeys(group, float(opening[first : first + units].sum())))
        derivative = np.zeros_like(opening)
        for group, (first, units) in self._index.groups.items():
            # The cost is of second degree in one group's number of units: a difference is its derivative.
            more, fewer = (
                cost.polynomial(self.budget.of, {**counts, **dict.fromkeys(group, counts[group[0]] + by)})
                for by in (0.5, -0.5)
            )
            derivative[first : first + units] = -(more - fewer) / self._total * slope[first : first + units]
        return 1.0 - float(cost.polynomial(self.budget.of, counts)) / self._total, derivative

    def decide(self, budget: Budget) -> Plan:
        """Units with the most closed gates go. See `Technique.decide`."""
        return self._decide_by(self._index.by_layer(self.gates.log_alpha), budget)

    def shrunk(self, structure: Structure, kept: Mapping[str, Sequence[int]]) -> None:
        """See `Technique.shrunk`."""
        stay = self._index.kept(kept)
        super().shrunk(structure, kept)
        self._settle(structure, self.gates.kept(stay))

    def finish(self, plan: Plan) -> None:
        """Fold the gates into the weights; those of removed units are closed. See `Technique.finish`."""
        stays = np.zeros(self._index.size)
        stays[self._index.kept(plan.kept)] = 1
        gates = ops.convert_to_tensor(np.append(self.gates.settled() * stays, 1.0).astype("float32"))
        weights = graph_of(self.model).weights()
        for name in self._gated:
            weights[name].assign(self._times(weights[name], name, gates))

    def state_dict(self) -> dict[str, Any]:
        """See `Technique.state_dict`."""
        return {
            "gates": self.gates.state(),
            "strength": self.strength,
            "target": self._target,
            "generator": self._rng.bit_generator.state,
            "sample": [self._sample.tolist(), self._slope.tolist()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Technique.load_state_dict`."""
        self.gates.restore(state["gates"])
        self.strength, self._target = float(state["strength"]), float(state["target"])
        self._draw()
        self._rng.bit_generator.state = state["generator"]
        self._sample, self._slope = (np.asarray(values) for values in state["sample"])
        self._drawn.assign(np.append(self._sample, 1.0).astype("float32"))
