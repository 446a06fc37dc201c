"""What a method does while a Keras model trains, and where it takes hold of the training.

Compiled functions run no hooks, so a method becomes part of what is compiled: gradients pass through it on their way
into the optimizer, and weights on their way into the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import keras
import numpy as np

from reprune.core.budget.budget import Budget
from reprune.core.errors import RecipeError
from reprune.core.layers import Structure
from reprune.core.methods import Method
from reprune.core.plan import Plan
from reprune.core.training.given_scores import decide_by
from reprune.keras.surgery.cloning import weight_arrays
from reprune.keras.tracing.graph import graph_of


class Technique(ABC):
    """A method at work in one training.

    Args:
        model: The model that is trained.
        structure: Where its units live; pinned layers stay whole.
        method: Name of the method, or the method itself.
        budget: What is to be removed at the end.
        seed: Seed of its randomness.

    Attributes:
        changes_gradients: Whether it works through the gradients, and so needs the optimizer.
        takes_inputs: Whether it can remove input units, the columns of embeddings, too.
    """

    changes_gradients: ClassVar[bool] = False
    takes_inputs: ClassVar[bool] = False

    def __init__(self, model: Any, structure: Structure, method: str | Method, budget: Budget, seed: int) -> None:
        self.model = model
        self.structure = structure
        self.method = method
        self.budget = budget
        self.seed = seed

    def loss(self) -> float:
        """The term whose gradient the method adds, in the latest step."""
        return 0.0

    def gradients(self, gradients: list[Any], variables: Sequence[Any]) -> list[Any]:
        """What the optimizer gets for gradients; may run inside a compiled function."""
        return gradients

    @contextmanager
    def around(self, training: bool) -> Iterator[None]:
        """Around a forward pass of the model; may run inside a compiled function."""
        yield

    def stepped(self, share: float) -> None:  # noqa: B027
        """The optimizer has taken a step; `share` of the final ratio is aimed at by now."""

    @abstractmethod
    def decide(self, budget: Budget) -> Plan:
        """Which units stay."""

    def shrunk(self, structure: Structure, kept: Mapping[str, Sequence[int]]) -> None:
        """The model has lost units: `kept` are those that stayed, `structure` is what is left."""
        self.structure = structure

    def finish(self, plan: Plan) -> None:  # noqa: B027
        """Leave the model behind as it computes now, without the method."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, as JSON-clean data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go on where `state_dict` was taken."""

    def _decide_by(self, scores: Mapping[str, np.ndarray[Any, Any]], budget: Budget) -> Plan:
        """The units with the smallest scores go, over all layers at once."""
        return decide_by(scores, self.structure, weight_arrays(graph_of(self.model)), budget, self.method, self.seed)


class Hooks:
    """Lets a technique take hold of a model's passes and of what its optimizer is handed, until `remove`."""

    def __init__(self, model: Any, optimizer: Any, technique: Technique) -> None:
        self._held: list[tuple[Any, str]] = []
        if not technique.changes_gradients:
            return
        if keras.backend.backend() == "jax":
            raise RecipeError(
                f"method={str(technique.method)!r} acts inside the training step, which the JAX backend compiles "
                "without it: set KERAS_BACKEND to tensorflow or torch, or give a method that selects, such as 'iss-gm'."
            )
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        apply, call = optimizer.apply, model.call

        def through_technique(gradients: Any, variables: Any = None) -> Any:
            known = list(optimizer._trainable_variables if variables is None else variables)
            return apply(technique.gradients(list(gradients), known), variables)

        def gated(*args: Any, **kwargs: Any) -> Any:
            training = kwargs.get("training")
            if training is None:
                # A `call` without such an argument of its own.
                training = model._get_call_context().training
            with technique.around(bool(training)):
                return call(*args, **kwargs)

        gated.__signature__ = model._call_signature if hasattr(model, "_call_signature") else None  # type: ignore[attr-defined]
        for owner, name, function in ((optimizer, "apply", through_technique), (model, "call", gated)):
            # On the instance, and gone afterwards.
            object.__setattr__(owner, name, function)
            self._held.append((owner, name))
        renew(model)

    def remove(self) -> None:
        """Leave model and optimizer alone from now on."""
        for owner, name in self._held:
            object.__delattr__(owner, name)
        if self._held:
            renew(self._held[-1][0])
        self._held = []


def renew(model: Any) -> None:
    """Let a compiled model compile its functions anew: those that it has know nothing of what changed."""
    if not getattr(model, "compiled", False):
        return
    running = model.train_function is not None
    model.train_function = model.test_function = model.predict_function = None
    if running:
        model.make_train_function(force=True)
