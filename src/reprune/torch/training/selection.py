"""Selection while training: any method that scores units, from statistics of the training's own forward passes.

No second pass is made, and a step pays little: of the passes between two selections `PASSES` are looked at, evenly
spread, and of the time steps in each of them `ROWS` drawn at random. Both leave mean and covariance without bias, as
batches come in random order. Products of responses are summed over many passes at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from reprune.core.budget.budget import Budget
from reprune.core.decide import decide
from reprune.core.errors import RecipeError
from reprune.core.evidence.evidence import Evidence
from reprune.core.evidence.moments import Moments
from reprune.core.evidence.readings import Reading, readings
from reprune.core.layers import Structure
from reprune.core.methods import Method, get_method
from reprune.core.plan import Plan
from reprune.torch.calibration.answers import watch_responses
from reprune.torch.calibration.labelled import watch_classes
from reprune.torch.calibration.readings import responses, watch_readings
from reprune.torch.surgery.apply import named_tensors
from reprune.torch.training.distributed import summed
from reprune.torch.training.technique import Technique
from reprune.torch.training.window import ROWS, Window

PASSES = 20
WINDOW = 200
"""Steps that statistics reach back where there is only one selection, at the end."""


class Selection(Technique):
    """Scores units as `reprune.plan` does, on the responses of the latest training passes."""

    def __init__(
        self, model: nn.Module, structure: Structure, method: str | Method, budget: Budget, every: int, seed: int
    ) -> None:
        super().__init__(model, structure, method, budget, every, seed)
        self._method = get_method(method)
        self._observes = self._method.needs_statistics or self._method.needs_labels
        self._passes = 0
        self._window, self._last = Window(structure), Window(structure)

    def stepped(self, steps: int, share: float) -> None:
        """Forget what lies too far back. See `Technique.stepped`."""
        if not self.every and steps % WINDOW == 0:
            self.selected()

    @contextmanager
    def around(self, training: bool) -> Iterator[None]:
        """Look at a pass of training, if it is its turn. See `Technique.around`."""
        watched = training and self._observes
        due = watched and self._passes % max((self.every or WINDOW) // PASSES, 1) == 0
        if due and self._passes == 0:
            self._window = Window(self.structure)  # What is in it was seen before the model shrank.
        self._passes += watched
        with ExitStack() as stack:
            if due and self._method.needs_labels:
                stack.enter_context(
                    watch_classes(self.model, self.structure, self._window.classes, self._labelled(), ROWS)
                )
            if due and self._method.needs_readings:
                self._window.to(self.device)
                window = self._window
                stack.enter_context(
                    watch_readings(self.model, self.structure, window.readings, window.answers, window.see)
                )
            elif due and self._method.needs_statistics:
                stack.enter_context(watch_responses(self.model, self.structure, self._window.see))
            yield

    def _labelled(self) -> Any:
        if self.labels is None:
            raise RecipeError(
                f"method={self.method!r} looks at classes: call pruner.label(classes) before each forward pass of "
                "training, or give PruningCallback(labels=), a function of a batch."
            )
        return self.labels

    def decide(self, budget: Budget) -> Plan:
        """See `Technique.decide`. The statistics are those of all processes."""
        tensors = named_tensors(self.model)
        arrays = {name: tensors[name].detach() for name in self.structure.shapes}
        # A window that has just begun says little; the one before it is nearly as fresh.
        last, window = self._last, self._window
        window = window.merged(last) if summed(window.rows) < summed(last.rows) else window
        if self._observes and not summed(window.rows):
            raise RecipeError(
                f"method={self.method!r} looks at responses, and no layer has shown any: run the model itself forward, "
                "in training mode (model.train()), before units are selected."
            )
        window = window.reduced(self.device) if self._observes else window
        found: dict[str, Moments] = dict(window.statistics) if self._method.needs_statistics else {}
        read: tuple[Reading, ...] = ()
        if self._method.needs_readings:
            found |= responses(self.structure, window.readings, window.answers)
            read = tuple(readings(self.structure, arrays, found, window.readings))
        classes = window.classes if self._method.needs_labels else {}
        evidence = Evidence(self.structure, arrays, found, read, classes=classes)
        return decide(evidence, budget, self.method, seed=self.seed)

    def selected(self) -> None:
        """Start anew. See `Technique.selected`."""
        self._last, self._window, self._passes = self._window, Window(self.structure), 0

    def shrunk(self, structure: Structure, kept: Any) -> None:
        """See `Technique.shrunk`."""
        self.structure = structure
        # Until the smaller model runs, what is known of its units is what they did before.
        self._last, self._window, self._passes = Window(structure), self._window.cut(structure, kept), 0

    def state_dict(self) -> dict[str, Any]:
        """See `Technique.state_dict`."""
        return {"passes": self._passes, "window": self._window.state(), "last": self._last.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Technique.load_state_dict`."""
        self._passes = state["passes"]
        self._window.restore(state["window"])
        self._last.restore(state["last"])
