"""What a method does while a model trains, beside the schedule: its own loss, its own steps, its decision."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from reprune.core.budget.budget import Budget
from reprune.core.layers import Structure
from reprune.core.methods import Method
from reprune.core.plan import Plan
from reprune.core.training.given_scores import decide_by
from reprune.torch.surgery.apply import named_tensors


class Technique(ABC):
    """A method at work in one training.

    Args:
        model: The model that is trained.
        structure: Where its units live; pinned layers stay whole.
        method: Name of the method, or the method itself.
        budget: What is to be removed at the end.
        every: Steps from one selection to the next; 0 where there is only one.
        seed: Seed of its randomness.

    Attributes:
        adds_loss: Whether it works through a term of the training loss.
        takes_inputs: Whether it can remove input units, the columns of embeddings, too.
        labels: Classes of the sequences in the coming forward pass, if they were told.
    """

    adds_loss: ClassVar[bool] = False
    takes_inputs: ClassVar[bool] = False

    def __init__(
        self, model: nn.Module, structure: Structure, method: str | Method, budget: Budget, every: int, seed: int
    ) -> None:
        self.model = model
        self.structure = structure
        self.method = method
        self.budget = budget
        self.every = every
        self.seed = seed
        self.labels: Any = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def loss(self) -> torch.Tensor:
        """The term that is added to the training loss."""
        return torch.zeros((), device=self.device)

    def stepped(self, steps: int, share: float) -> None:  # noqa: B027
        """The model has taken optimiser step `steps`; `share` of the final ratio is aimed at by now."""

    @contextmanager
    def around(self, training: bool) -> Iterator[None]:
        """Around a forward pass of the model."""
        yield

    @abstractmethod
    def decide(self, budget: Budget) -> Plan:
        """Which units stay, as far as this process can tell."""

    def selected(self) -> None:  # noqa: B027
        """Units were selected: what was seen before belongs to the past."""

    def shrunk(self, structure: Structure, kept: Mapping[str, list[int]]) -> None:
        """The model has lost units: `kept` are those that stayed, `structure` is what is left."""
        self.structure = structure

    def finish(self, plan: Plan) -> None:  # noqa: B027
        """Leave the model behind as it computes now, without the method."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: plain data and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go on where `state_dict` was taken."""

    def _decide_by(self, scores: Mapping[str, np.ndarray[Any, Any]], budget: Budget) -> Plan:
        """The units with the smallest scores go, over all layers at once."""
        return decide_by(scores, self.structure, named_tensors(self.model), budget, self.method, self.seed)


def uncompiled(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that `torch.compile` leaves alone: it would compile the tracer."""
    return torch.compiler.disable(hook)  # type: ignore[no-any-return, no-untyped-call]


class Hooks:
    """Lets a technique stand around every forward pass of a model, but not around those of its copies."""

    def __init__(self, model: nn.Module, technique: Technique) -> None:
        self.training_passes = 0
        self._model, self._technique = model, technique
        self._open: list[ExitStack] = []
        # Functions, not methods: a copy of the model then shares them instead of copying this object.
        self._handles = (
            model.register_forward_pre_hook(uncompiled(lambda module, _: self.before(module))),
            model.register_forward_hook(uncompiled(lambda module, *_: self._after(module)), always_call=True),
        )

    def before(self, model: nn.Module) -> None:
        """Stand around the pass that begins."""
        if model is self._model:
            self._open.append(ExitStack())
            self.training_passes += model.training
            if len(self._open) == 1:  # A model may call itself.
                self._open[0].enter_context(self._technique.around(model.training))

    def _after(self, model: nn.Module) -> None:
        if model is self._model and self._open:
            self._open.pop().close()

    def remove(self) -> None:
        """Leave the model alone from now on."""
        for handle in self._handles:
            handle.remove()
