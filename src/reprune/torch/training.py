"""Pruning while a model trains, in a loop of one's own or inside a trainer's callback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from reprune.core.budget import Budget
from reprune.core.cost import Measure
from reprune.core.decide import decide
from reprune.core.errors import RecipeError
from reprune.core.evidence import Evidence
from reprune.core.methods import Method, get_method
from reprune.core.plan import Plan
from reprune.core.schedule import Schedule, parse_schedule
from reprune.core.statistics import Moments
from reprune.torch.apply import apply, named_tensors
from reprune.torch.observe import gather
from reprune.torch.trace import trace


class Pruner:
    """Prunes a model while it trains: units are selected and silenced again and again, and may grow back in between.

    Statistics come from the training's own forward passes. Silencing sets a unit's incoming weights and biases to zero;
    the weights that read it stay, because through them the gradient reaches it again and it can regrow. The optimiser
    is not touched: with its moments a unit that was learning goes on where it was heading.

    Args:
        model: The model, trained in place.
        example: A batch, as the model takes it.
        ratio: Fraction to remove.
        of: What the fraction is of.
        method: How units are chosen.
        schedule: When: `soft:S`, every S optimiser steps.
        exclude: Globs of layers to leave alone.
        min_units: Units that every layer keeps at least.
        round_to: Units kept are a multiple of this.
        forward: Replaces `model(example)`.
        seed: Seed of the method's randomness.

    Example:
        >>> pruner = Pruner(model, example, ratio=0.5, method="iss-gm", schedule="soft:200")  # doctest: +SKIP
        >>> for batch in batches:                                                             # doctest: +SKIP
        ...     loss(model(batch)).backward()
        ...     optimizer.step()
        ...     pruner.step()
        >>> small = pruner.finish()                                                           # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        *,
        ratio: float,
        of: Measure = "units",
        method: str | Method = "iss-gm",
        schedule: str | Schedule = "soft:200",
        exclude: Sequence[str] = (),
        min_units: int = 1,
        round_to: int = 1,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.schedule = parse_schedule(schedule)
        if self.schedule.kind == "after":
            raise RecipeError(
                "schedule='after' prunes a trained model: call reprune.torch.prune() when training is over."
            )
        if get_method(method).needs_readings:
            raise RecipeError(
                f"method={method!r} compensates for what it removes, from observations that training does not make: "
                "give one that only selects, such as 'iss-gm', or call reprune.torch.prune() when training is over."
            )
        self.model = model
        self.structure = trace(model, example, forward)
        self.steps = 0
        self.plan: Plan | None = None
        self._ratio = ratio
        self._budget = Budget(ratio, of, min_units, round_to)
        self._method = method
        self._exclude = tuple(exclude)
        self._seed = seed
        self._moments = self._fresh()
        self._current = ExitStack()
        # Functions, not methods: a copy of the model then shares them instead of copying the pruner.
        self._hooks = (
            model.register_forward_pre_hook(lambda module, _: self._before_pass(module)),
            model.register_forward_hook(lambda module, *_: self._after_pass(module), always_call=True),
        )

    def loss(self) -> torch.Tensor:
        """The term that the method adds to the training loss: 0 for methods that add none."""
        return torch.zeros((), device=next(self.model.parameters()).device)

    def step(self) -> None:
        """Count an optimiser step; when the schedule says so, select units and silence them."""
        self.steps += 1
        if self.schedule.due(self.steps):
            self.plan = self._decide()
            self._moments = self._fresh()
            silence(self.model, self.plan)

    def finish(self) -> nn.Module:
        """Select for the last time and return the smaller model. `plan` says which units stay.

        The model that was trained keeps its size and weights, and is not observed any more.
        """
        if self.plan is None or any(moments.count for moments in self._moments.values()):
            self.plan = self._decide()
        self.close()
        return apply(self.model, self.plan)

    def close(self) -> None:
        """Stop observing the model."""
        for hook in self._hooks:
            hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the model and the optimiser: steps, last selection, statistics since."""
        return {
            "steps": self.steps,
            "kept": None if self.plan is None else dict(self.plan.kept),
            "moments": {name: moments.state() for name, moments in self._moments.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.steps = int(state["steps"])
        if state["kept"] is not None:
            self.plan = Plan(self.structure, state["kept"], str(self._method), self._ratio, self._budget.of)
        for name, moments in state["moments"].items():
            self._moments[name].restore(moments)

    def _decide(self) -> Plan:
        tensors = named_tensors(self.model)
        evidence = Evidence(
            self.structure, {name: tensors[name].detach() for name in self.structure.shapes}, self._moments
        )
        return decide(evidence, self._budget, self._method, exclude=self._exclude, seed=self._seed)

    def _fresh(self) -> dict[str, Moments]:
        return {name: Moments(name, layer.units) for name, layer in self.structure.layers.items()}

    def _counts(self, model: nn.Module) -> bool:
        """Whether a pass is one of training: not of a validation between two epochs, nor of a copy of the model."""
        return model is self.model and model.training

    def _before_pass(self, model: nn.Module) -> None:
        if self._counts(model):
            self._seen = self._current.enter_context(gather(model, self.structure))

    def _after_pass(self, model: nn.Module) -> None:
        if self._counts(model):
            self._current.close()
            for name, seen in self._seen.items():
                moments = self._moments[name]
                if moments.count and seen.count:
                    # A checkpoint was loaded before the model went to its device.
                    moments.restore(_moved(moments.state(), seen.mean.device))
                moments.merge(seen)


def _moved(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {**state, "mean": state["mean"].to(device), "scatter": state["scatter"].to(device)}


def silence(model: nn.Module, plan: Plan) -> None:
    """Set the incoming weights and biases of the units that a plan removes to zero, in place: they respond with 0."""
    removed = plan.removed()
    own = {slot for layer in removed for slot in plan.structure.slots_of(layer, "own")}
    tensors = named_tensors(model)
    with torch.no_grad():
        for slot in own:
            tensor = tensors[slot.tensor]
            positions = torch.from_numpy(slot.positions(removed)).to(tensor.device)
            tensor.index_fill_(slot.axis, positions, 0)
