"""ISS group lasso: a penalty on the length of everything a unit touches; see `core.training.group_lasso`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reprune.core.budget.budget import Budget
from reprune.core.budget.cost import CostModel
from reprune.core.layers import Structure
from reprune.core.methods import Method
from reprune.core.plan import Plan
from reprune.core.training.group_lasso import DEAD, Pull, share_gone
from reprune.core.units import UnitIndex, shared_places
from reprune.torch.surgery.apply import named_tensors
from reprune.torch.training.technique import Technique


class GroupLasso(Technique):
    """λ Σ_u ‖ISS_u‖₂ over all units that can be removed, coupled units together, with λ found for the ratio."""

    adds_loss = True

    def __init__(
        self, model: nn.Module, structure: Structure, method: str | Method, budget: Budget, every: int, seed: int
    ) -> None:
        super().__init__(model, structure, method, budget, every, seed)
        self.pull = Pull()
        self._total = CostModel(structure)(budget.of, structure.counts())
        self._lengths = IssLengths(structure)
        with torch.no_grad():
            self._start = self._lengths(named_tensors(model))
        self._now = self._start

    def loss(self) -> torch.Tensor:
        """λ times the sum of the lengths, each faded out near the target. See `Technique.loss`."""
        lengths = self._lengths(named_tensors(self.model))
        self._now = lengths.detach()
        left, gone = self.pull.on_units
        return torch.where(self._alive(), left * lengths, gone * lengths).sum()

    def stepped(self, steps: int, share: float) -> None:
        """Let λ grow. See `Technique.stepped`."""
        self.pull.step(share * (self.budget.ratio or 0.0) - self.gone())

    def gone(self) -> float:
        """Fraction of the budget's measure that units as good as zero hold."""
        alive = self._alive().cpu().numpy()
        return share_gone(self.structure, self._lengths.index, alive, self.budget.of, self._total)

    def _alive(self) -> torch.Tensor:
        return self._now > DEAD * self._start.to(self._now.device).mean()

    def decide(self, budget: Budget) -> Plan:
        """The shortest go, by the root mean square of their weights. See `Technique.decide`."""
        lengths = self._lengths(named_tensors(self.model)).detach().cpu() / self._lengths.weights.sqrt()
        return self._decide_by(self._lengths.index.by_layer(lengths.double().numpy()), budget)

    def shrunk(self, structure: Structure, kept: Any) -> None:
        """See `Technique.shrunk`."""
        stay = torch.from_numpy(self._lengths.index.kept(kept))
        super().shrunk(structure, kept)
        self._lengths = IssLengths(structure)
        self._start, self._now = (values[stay.to(values.device)] for values in (self._start, self._now))

    def state_dict(self) -> dict[str, Any]:
        """See `Technique.state_dict`."""
        return {"strength": self.pull.strength, "missing": self.pull.missing, "start": self._start, "now": self._now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Technique.load_state_dict`."""
        self.pull.strength, self.pull.missing = float(state["strength"]), float(state["missing"])
        self._start, self._now = state["start"], state["now"]


class IssLengths:
    """Length of the intrinsic sparse structure of every unit, with a gradient.

    It holds every slice of every parameter that knows the unit: its rows in all gates, its column in its own recurrent
    matrix and in every consumer, its entries in gains on the way. A weight that two slices of one unit share, on the
    diagonal of a recurrent matrix, counts once.

    Attributes:
        index: Numbers of the units.
        weights: How many weights each structure holds (units).
    """

    def __init__(self, structure: Structure) -> None:
        self.index = UnitIndex(structure)
        self._axes: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for slot in structure.slots:
            if slot.tensor not in structure.buffers:
                self._axes.setdefault(slot.tensor, []).append((slot.axis, torch.from_numpy(self.index.of(slot))))
        self._shared = {
            name: tuple(map(torch.from_numpy, shared_places([(axis, n.numpy()) for axis, n in axes], self.index.size)))
            for name, axes in self._axes.items()
            if len(axes) == 2
        }
        ones = {name: torch.ones(structure.shapes[name]) for name in self._axes}
        self.weights = self._sums(ones)

    def __call__(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Lengths (units) in the given tensors."""
        squares = self._sums({name: tensors[name].square() for name in self._axes})
        # At zero the square root has no derivative; the clamp's is 0 there.
        return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()

    def _sums(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        first = next(iter(values.values()))
        total = first.new_zeros(self.index.size + 1)
        for name, value in values.items():
            axes = self._axes[name] = [(axis, numbers.to(value.device)) for axis, numbers in self._axes[name]]
            for axis, numbers in axes:
                others = [other for other in range(value.ndim) if other != axis]
                total = total.index_add(0, numbers, value.sum(others) if others else value)
            if name in self._shared:
                (a, numbers), (b, _) = axes
                rows, columns = self._shared[name]
                twice = value.movedim((a, b), (0, 1))[rows.to(value.device), columns.to(value.device)]
                total = total.index_add(
                    0, numbers[rows.to(value.device)], -(twice.flatten(1).sum(1) if twice.ndim > 1 else twice)
                )
        return total[:-1]
