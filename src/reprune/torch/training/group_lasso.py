"""ISS group lasso: a penalty on the length of everything a unit touches drives whole units to zero.

W. Wen et al., "Learning Intrinsic Sparse Structures within Long Short-Term Memory", ICLR 2018, eq. 4: the loss gains
λ Σ_u ‖ISS_u‖₂. A weight between two units belongs to the structures of both, so the groups overlap and the proximal
operator has no closed form; the penalty is therefore differentiated (its subgradient at zero is 0) and goes through the
training's own optimiser, as in the paper. Units that are as good as zero are removed at the end by the plan.

The paper tries values of λ until the size is right. Here λ is found while the model trains: it grows until as many
units are as good as zero as the ratio asks for. Units go on shrinking for a while after λ is large enough, so close to
the target the penalty on those that are left fades out; those that are gone it holds where they are.
"""

from __future__ import annotations

from math import exp
from typing import Any

import numpy as np
import torch
from torch import nn

from reprune.core.budget import Budget
from reprune.core.cost import CostModel
from reprune.core.layers import Structure
from reprune.core.methods import Method
from reprune.core.plan import Plan
from reprune.torch.surgery.apply import named_tensors
from reprune.torch.training.technique import Technique, UnitIndex

START = 1e-4
"""First λ."""
GROWTH = 0.015
"""Growth of log λ per step, until the target is near: tenfold in 150 steps."""
FADE = 0.05
"""Fraction of the budget's measure over which the penalty fades out: before the target on units that are left, beyond
it on those that are gone, too, so that some come back."""
DEAD = 0.1
"""A unit counts as gone when its structure is shorter than this fraction of the mean length at the start. An optimiser
with steps of one size, such as Adam, keeps weights that want to be zero at about the size of its step."""


class GroupLasso(Technique):
    """λ Σ_u ‖ISS_u‖₂ over all units that can be removed, coupled units together, with λ found for the ratio."""

    adds_loss = True

    def __init__(
        self, model: nn.Module, structure: Structure, method: str | Method, budget: Budget, every: int, seed: int
    ) -> None:
        super().__init__(model, structure, method, budget, every, seed)
        self.strength = START
        self._missing = 1.0
        self._cost = CostModel(structure)
        self._total = self._cost(budget.of, structure.counts())
        self._lengths = IssLengths(structure)
        with torch.no_grad():
            self._start = self._lengths(named_tensors(model))
        self._now = self._start

    def loss(self) -> torch.Tensor:
        """λ times the sum of the lengths, each faded out near the target. See `Technique.loss`."""
        lengths = self._lengths(named_tensors(self.model))
        self._now = lengths.detach()
        left, gone = _clipped(self._missing / FADE), _clipped(self._missing / FADE + 1)
        return self.strength * torch.where(self._alive(), left * lengths, gone * lengths).sum()

    def stepped(self, steps: int, share: float) -> None:
        """Let λ grow. See `Technique.stepped`."""
        self._missing = share * (self.budget.ratio or 0.0) - self.gone()
        self.strength *= exp(GROWTH * _clipped(self._missing / FADE))

    def gone(self) -> float:
        """Fraction of the budget's measure that units as good as zero hold."""
        alive = self._lengths.index.by_layer(self._alive())
        counts = self.structure.counts()
        counts.update({name: max(int(units.sum()), 1) for name, units in alive.items()})
        return 1.0 - self._cost(self.budget.of, counts) / self._total

    def _alive(self) -> torch.Tensor:
        return self._now > DEAD * self._start.to(self._now.device).mean()

    def decide(self, budget: Budget) -> Plan:
        """The shortest go, by the root mean square of their weights. See `Technique.decide`."""
        lengths = self._lengths(named_tensors(self.model)).detach().cpu() / self._lengths.weights.sqrt()
        return self._decide_by(self._lengths.index.by_layer(lengths), budget)

    def shrunk(self, structure: Structure, kept: Any) -> None:
        """See `Technique.shrunk`."""
        stay = self._lengths.index.kept(kept)
        super().shrunk(structure, kept)
        self._lengths = IssLengths(structure)
        self._start, self._now = (values[stay.to(values.device)] for values in (self._start, self._now))

    def state_dict(self) -> dict[str, Any]:
        """See `Technique.state_dict`."""
        return {"strength": self.strength, "missing": self._missing, "start": self._start, "now": self._now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Technique.load_state_dict`."""
        self.strength, self._missing = float(state["strength"]), float(state["missing"])
        self._start, self._now = state["start"], state["now"]


def _clipped(value: float) -> float:
    return min(max(value, 0.0), 1.0)


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
                self._axes.setdefault(slot.tensor, []).append((slot.axis, self.index.of(slot)))
        self._shared = {name: _diagonal(axes, self.index.size) for name, axes in self._axes.items() if len(axes) == 2}
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


def _diagonal(axes: list[tuple[int, torch.Tensor]], nobody: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions at which both axes of a tensor name the same unit."""
    rows, columns = (numbers.numpy() for _, numbers in axes)
    pairs = []
    for unit in np.setdiff1d(np.intersect1d(rows, columns), [nobody]):
        grid = np.meshgrid(np.flatnonzero(rows == unit), np.flatnonzero(columns == unit), indexing="ij")
        pairs.append(np.stack(grid).reshape(2, -1))
    found = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), dtype=np.int64)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])
