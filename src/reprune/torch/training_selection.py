"""Selection while training: any method that scores units, from statistics of the training's own forward passes.

No second pass is made, and a step pays little: of the passes between two selections `PASSES` are looked at, evenly
spread, and of the time steps in each of them `ROWS` drawn at random. Both leave mean and covariance without bias, as
batches come in random order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from reprune.core.budget import Budget
from reprune.core.decide import decide
from reprune.core.errors import RecipeError
from reprune.core.evidence import Evidence
from reprune.core.layers import Structure
from reprune.core.methods import Method, get_method
from reprune.core.plan import Plan
from reprune.core.readings import Reading, SplitMoments, readings
from reprune.core.statistics import Moments
from reprune.torch.apply import named_tensors
from reprune.torch.observe import Statistics, gather
from reprune.torch.training_distributed import all_reduced
from reprune.torch.training_technique import Technique
from reprune.torch.watch import responses, watch_readings

PASSES = 20
ROWS = 2048
WINDOW = 200
"""Steps that statistics reach back where there is only one selection, at the end."""


class Selection(Technique):
    """Scores units as `reprune.plan` does, on the responses of the latest training passes.

    Raises:
        RecipeError: The method needs labels or gradients of a loss, which forward passes do not show.
    """

    def __init__(
        self, model: nn.Module, structure: Structure, method: str | Method, budget: Budget, every: int, seed: int
    ) -> None:
        super().__init__(model, structure, method, budget, every, seed)
        self._method = get_method(method)
        if self._method.needs_labels or self._method.needs_loss:
            raise RecipeError(
                f"method={method!r} needs {'labels' if self._method.needs_labels else 'gradients of a loss'}, which "
                "forward passes do not show: give one that looks at weights and responses, such as 'iss-gm', or call "
                "reprune.torch.prune() when training is over."
            )
        self._passes = 0
        self._window, self._last = Window(structure), Window(structure)

    def stepped(self, steps: int, share: float) -> None:
        """Forget what lies too far back. See `Technique.stepped`."""
        if not self.every and steps % WINDOW == 0:
            self.selected()

    @contextmanager
    def around(self, training: bool) -> Iterator[None]:
        """Look at a pass of training, if it is its turn. See `Technique.around`."""
        watched = training and self._method.needs_statistics
        due = watched and self._passes % max((self.every or WINDOW) // PASSES, 1) == 0
        self._passes += watched
        if not due:
            yield
        elif self._method.needs_readings:
            self._window.to(self.device)
            with watch_readings(self.model, self.structure, self._window.readings):
                yield
        else:
            with gather(self.model, self.structure, ROWS) as seen:
                yield
            self._window.to(self.device)
            self._window.add(seen)

    def decide(self, budget: Budget) -> Plan:
        """See `Technique.decide`. The statistics are those of all processes."""
        tensors = named_tensors(self.model)
        arrays = {name: tensors[name].detach() for name in self.structure.shapes}
        evidence = Evidence(self.structure, arrays)
        if self._method.needs_statistics:
            # A window that has just begun says little; the one before it is nearly as fresh.
            last, now = self._last, self._window
            window = now.merged(last) if now.rows < last.rows else now
            window = window.mapped(lambda moments: all_reduced(moments, self.device))
            found: dict[str, Moments] = dict(window.statistics)
            read: tuple[Reading, ...] = ()
            if self._method.needs_readings:
                found = {name: responses(self.structure, window.readings, name) for name in self.structure.layers}
                read = tuple(readings(self.structure, arrays, found, window.readings))
            evidence = Evidence(self.structure, arrays, found, read)
        return decide(evidence, budget, self.method, seed=self.seed)

    def selected(self) -> None:
        """Start anew. See `Technique.selected`."""
        self._last, self._window, self._passes = self._window, Window(self.structure), 0

    def shrunk(self, structure: Structure, kept: Any) -> None:
        """See `Technique.shrunk`."""
        self.structure = structure
        self._last, self._window, self._passes = Window(structure), Window(structure), 0

    def state_dict(self) -> dict[str, Any]:
        """See `Technique.state_dict`."""
        return {"passes": self._passes, "window": self._window.state(), "last": self._last.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Technique.load_state_dict`."""
        self._passes = state["passes"]
        self._window.restore(state["window"])
        self._last.restore(state["last"])


class Window:
    """Statistics of a stretch of training."""

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self.statistics = Statistics(structure)
        self.readings: dict[tuple[str, int], SplitMoments] = {}

    @property
    def rows(self) -> int:
        """Rows that were seen, over all layers and consumers."""
        return sum(moments.count for moments in self._all())

    def add(self, seen: Statistics) -> None:
        """Account for a pass."""
        for name, moments in seen.items():
            self.statistics[name].merge(moments)

    def merged(self, other: Window) -> Window:
        """Both stretches together; consumers that shared their statistics in each go on sharing them."""
        both = Window(self._structure)
        for window in (self, other):
            both.add(window.statistics)
        pairs: dict[tuple[int, int], SplitMoments] = {}
        for key in dict.fromkeys([*self.readings, *other.readings]):
            parts = [window.readings[key] for window in (self, other) if key in window.readings]
            pair = (id(parts[0]), id(parts[-1]))
            if pair not in pairs:
                pairs[pair] = SplitMoments(key[0], parts[0].size)
                for part in parts:
                    for half, seen in zip(pairs[pair].halves, part.halves, strict=True):
                        half.merge(seen)
            both.readings[key] = pairs[pair]
        return both

    def mapped(self, change: Any) -> Window:
        """A window with every one of its moments changed once, in the same order in every process."""
        other = Window(self._structure)
        other.restore(self.state())
        for moments in other._all():
            moments.restore(change(moments))
        return other

    def to(self, device: torch.device) -> None:
        """Move to a device: a checkpoint was perhaps loaded before the model went there."""
        for moments in self._all():
            state = moments.state()
            if moments.count and state["mean"].device != device:
                moments.restore({**state, "mean": state["mean"].to(device), "scatter": state["scatter"].to(device)})

    def state(self) -> dict[str, Any]:
        """As plain data and tensors."""
        shared: dict[int, dict[str, Any]] = {}
        for key, split in self.readings.items():
            halves = [half.state() for half in split.halves]
            shared.setdefault(id(split), {"keys": [], "halves": halves})["keys"].append(list(key))
        responses = {name: moments.state() for name, moments in self.statistics.items()}
        return {"responses": responses, "readings": list(shared.values())}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name, moments in state["responses"].items():
            self.statistics[name].restore(moments)
        sizes = {(slot.tensor, slot.axis): slot.size for slot in self._structure.slots}
        for entry in state["readings"]:
            keys = [(str(tensor), int(axis)) for tensor, axis in entry["keys"]]
            split = SplitMoments(keys[0][0], sizes[keys[0]])
            for half, saved in zip(split.halves, entry["halves"], strict=True):
                half.restore(saved)
            self.readings.update(dict.fromkeys(keys, split))

    def _all(self) -> list[Moments]:
        splits = {id(split): split for split in self.readings.values()}
        return [*self.statistics.values(), *(half for split in splits.values() for half in split.halves)]
