"""Neuron selection: a gate on every unit learns to open or to close, and is folded into the weights at the end.

See `core.training.hard_concrete`. Input units have gates as well: those of upper layers are the units below, those of
the first one, if asked for, are the columns of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import huber_loss

from reprune.core.budget.budget import Budget
from reprune.core.budget.cost import CostModel
from reprune.core.layers import Structure
from reprune.core.methods import Method
from reprune.core.plan import Plan
from reprune.core.training.hard_concrete import BETA, GAMMA, RATE, SHIFT, SLACK, START, START_STRENGTH, ZETA, grown
from reprune.core.units import UnitIndex
from reprune.torch.surgery.apply import named_tensors
from reprune.torch.training.distributed import average_gradients
from reprune.torch.training.technique import Technique


def open_probability(log_alpha: torch.Tensor) -> torch.Tensor:
    """P(z ≠ 0) = σ(log α − β log(−γ / ζ)); Louizos et al., eq. 12."""
    return torch.sigmoid(log_alpha - SHIFT)


def sampled(log_alpha: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """z = min(1, max(0, s (ζ − γ) + γ)) with s = σ((log u − log(1 − u) + log α) / β); eq. 10 and 11.

    Args:
        log_alpha: Locations of the gates.
        noise: u, uniform between 0 and 1.
    """
    s = torch.sigmoid((noise.log() - (-noise).log1p() + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def settled(log_alpha: torch.Tensor) -> torch.Tensor:
    """z = min(1, max(0, σ(log α) (ζ − γ) + γ)), the gate without noise; eq. 13."""
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


class NeuronSelection(Technique):
    """Gates on all units that can be removed, one for coupled units, trained by an optimiser of their own.

    Passes in training mode draw the gates at random, others take them without noise.
    """

    adds_loss = True
    takes_inputs = True

    def __init__(
        self, model: nn.Module, structure: Structure, method: str | Method, budget: Budget, every: int, seed: int
    ) -> None:
        super().__init__(model, structure, method, budget, every, seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._cost = CostModel(structure)
        self._total = self._cost(budget.of, structure.counts())
        self._target = budget.ratio or 0.0
        self.strength = START_STRENGTH
        self._settle(structure, torch.full((UnitIndex(structure).size,), START, device=self.device))

    def _settle(self, structure: Structure, log_alpha: torch.Tensor) -> None:
        self._index = UnitIndex(structure)
        # Units that are also read without a weight are silenced at their source, as the masked model does.
        direct = {name for name, layer in structure.layers.items() if layer.direct}
        self._gated: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for slot in structure.slots:
            layers = {span.layer for span in slot.spans}
            gated = slot.role == "reads" or (slot.role == "own" and layers & direct)
            if gated and slot.tensor not in structure.buffers:
                self._gated.setdefault(slot.tensor, []).append((slot.axis, torch.from_numpy(self._index.of(slot))))
        self.log_alpha = nn.Parameter(log_alpha)
        self._optimizer = torch.optim.Adam([self.log_alpha], lr=RATE)

    def loss(self) -> torch.Tensor:
        """μ (|d| − SLACK / 2), or μ d² / (2 SLACK) where |d| < SLACK. See `Technique.loss`."""
        self._follow()
        missing = self._missing()
        return self.strength / SLACK * huber_loss(missing, torch.zeros_like(missing), delta=SLACK)

    def expected_removed(self) -> torch.Tensor:
        """Expected fraction of the budget's measure that closed gates remove, with a gradient."""
        opening = open_probability(self.log_alpha)
        counts: dict[str, Any] = dict(self.structure.counts())
        for group, (first, units) in self._index.groups.items():
            counts.update(dict.fromkeys(group, opening[first : first + units].sum()))
        return torch.as_tensor(1.0 - self._cost.polynomial(self.budget.of, counts) / self._total)

    def _missing(self) -> torch.Tensor:
        return self._target - self.expected_removed()

    def stepped(self, steps: int, share: float) -> None:
        """Let the gates take a step as well, and μ grow. See `Technique.stepped`."""
        self._target = share * (self.budget.ratio or 0.0)
        average_gradients([self.log_alpha])
        if self.log_alpha.grad is not None and bool(self.log_alpha.grad.isfinite().all()):
            self._optimizer.step()
        self._optimizer.zero_grad()
        missing = float(self._missing().detach())
        self.strength = grown(self.strength, missing)

    @contextmanager
    def around(self, training: bool) -> Iterator[None]:
        """Gate the weights during a pass. See `Technique.around`."""
        self._follow()
        if training:
            noise = torch.rand(len(self.log_alpha), generator=self._generator).clamp(1e-6, 1 - 1e-6)
            gates = sampled(self.log_alpha, noise.to(self.log_alpha.device))
        else:
            gates = settled(self.log_alpha)
        tensors = named_tensors(self.model)
        with swapped(self.model, {id(tensors[name]): self._times(tensors[name], name, gates) for name in self._gated}):
            yield

    def _times(self, tensor: torch.Tensor, name: str, gates: torch.Tensor) -> torch.Tensor:
        """A weight with its axes multiplied by the gates of the units along them."""
        factors = torch.cat([gates, gates.new_ones(1)]).to(tensor.dtype)
        for axis, numbers in self._gated[name]:
            shape = [1] * tensor.ndim
            shape[axis] = -1
            tensor = tensor * factors[numbers.to(factors.device)].reshape(shape)
        return tensor

    def _follow(self) -> None:
        """Go where the model went."""
        if self.log_alpha.device != self.device:
            self.log_alpha.data = self.log_alpha.data.to(self.device)
            for state in self._optimizer.state.values():
                state.update({key: state[key].to(self.device) for key in ("exp_avg", "exp_avg_sq")})

    def decide(self, budget: Budget) -> Plan:
        """Units with the most closed gates go. See `Technique.decide`."""
        return self._decide_by(
            self._index.by_layer(torch.sigmoid(self.log_alpha).detach().double().cpu().numpy()), budget
        )

    def shrunk(self, structure: Structure, kept: Any) -> None:
        """See `Technique.shrunk`."""
        stay = torch.from_numpy(self._index.kept(kept)).to(self.log_alpha.device)
        moments = self._optimizer.state.get(self.log_alpha, {})
        self.structure = structure
        self._settle(structure, self.log_alpha.detach()[stay])
        if moments:
            cut = {key: value[stay] if value.ndim else value for key, value in moments.items()}
            self._optimizer.state[self.log_alpha] = cut

    def finish(self, plan: Plan) -> None:
        """Fold the gates into the weights; those of removed units are closed. See `Technique.finish`."""
        gates = settled(self.log_alpha.detach())
        stays = torch.zeros_like(gates)
        stays[torch.from_numpy(self._index.kept(plan.kept)).to(gates.device)] = 1
        tensors = named_tensors(self.model)
        with torch.no_grad():
            for name in self._gated:
                tensors[name].copy_(self._times(tensors[name], name, gates * stays))

    def state_dict(self) -> dict[str, Any]:
        """See `Technique.state_dict`."""
        return {
            "log_alpha": self.log_alpha.detach(),
            "optimizer": self._optimizer.state_dict(),
            "strength": self.strength,
            "target": self._target,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Technique.load_state_dict`."""
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.strength = float(state["strength"])
        self._target = float(state["target"])
        self._generator.set_state(state["generator"].cpu())


@contextmanager
def swapped(model: nn.Module, by_id: dict[int, torch.Tensor]) -> Iterator[None]:
    """Within this context, modules compute with other tensors in the place of their parameters, given by id."""
    undo: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for module in model.modules():
        if any(id(parameter) in by_id for parameter in module._parameters.values()):
            held: dict[str, Any] = module.__dict__
            undo.append((held, {key: held[key] for key in ("_parameters", "_flat_weights") if key in held}))
            held["_parameters"] = {name: by_id.get(id(own), own) for name, own in module._parameters.items()}
            if "_flat_weights" in held:
                held["_flat_weights"] = [by_id.get(id(own), own) for own in held["_flat_weights"]]
    try:
        yield
    finally:
        for held, before in undo:
            held.update(before)
