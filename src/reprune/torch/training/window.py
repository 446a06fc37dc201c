"""Statistics of a stretch of training: gathered pass by pass, saved, put together, and exchanged between processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from reprune.core.evidence.class_moments import ClassMoments
from reprune.core.evidence.moments import Moments
from reprune.core.evidence.readings import Axis, SplitMoments, Statistics
from reprune.core.layers import Structure
from reprune.torch.calibration.answers import rows
from reprune.torch.training.distributed import all_reduced, gathered

ROWS = 2048
"""Responses of a layer that are taken from one pass."""
PENDING = 4096
"""Responses that are kept before their products are summed: large sums cost less than many small ones."""


class Window:
    """Statistics of a stretch of training."""

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self.statistics = Statistics(structure)
        self._pending: dict[str, list[torch.Tensor]] = {}
        self.readings: dict[Axis, SplitMoments] = {}
        self.answers: dict[str, Axis] = {}
        self.classes = {name: ClassMoments(name, layer.units) for name, layer in structure.layers.items()}

    @property
    def rows(self) -> int:
        """Rows that were seen, over all layers and consumers."""
        pending = sum(len(found) for parts in self._pending.values() for found in parts)
        by_class = sum(part.count for part in self.classes.values())
        return pending + by_class + sum(moments.count for moments in self._all())

    def see(self, name: str, response: torch.Tensor, _: torch.Tensor | None = None) -> None:
        """Account for a layer's responses in a pass (… × units): for a random sample if there are many."""
        found = rows(response)
        if len(found) > ROWS:
            # With replacement: no permutation of all rows is needed, and the estimate stays without bias.
            found = found[torch.randint(len(found), (ROWS,), device=found.device)]
        self._pending.setdefault(name, []).append(found.clone())
        if sum(map(len, self._pending[name])) > PENDING:
            self._settle(name)

    def _settle(self, name: str) -> None:
        found = self._pending.pop(name)
        self.to(found[-1].device)
        self.statistics[name].update(torch.cat([rows.to(found[-1].device) for rows in found]))

    def settled(self) -> Statistics:
        """The statistics with all that was seen."""
        for name in list(self._pending):
            self._settle(name)
        return self.statistics

    def merged(self, other: Window) -> Window:
        """Both stretches together; consumers that shared their statistics in each go on sharing them."""
        both = Window(self._structure)
        for window in (self, other):
            for name, moments in window.settled().items():
                both.statistics[name].merge(moments)
            both.answers |= window.answers
            both._add_classes({name: moments.state() for name, moments in window.classes.items()})
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

    def cut(self, structure: Structure, kept: Mapping[str, list[int]]) -> Window:
        """What was seen of the units that stay, as if the model had lost the others before.

        Args:
            structure: What is left.
            kept: Sorted indices of the units that stay, for every layer.
        """
        units = {name: range(layer.units) for name, layer in self._structure.layers.items()}
        removed = {name: sorted({*units[name]} - {*kept[name]}) for name in units}
        stay = {
            (slot.tensor, slot.axis): np.setdiff1d(np.arange(slot.size), slot.positions(removed)).tolist()
            for slot in self._structure.slots
        }
        state = self.state()
        small = Window(structure)
        small.restore(
            {
                "responses": {name: _part(moments, kept[name]) for name, moments in state["responses"].items()},
                "pending": {name: rows[:, kept[name]] for name, rows in state["pending"].items()},
                "readings": [
                    {**entry, "halves": [_part(half, stay[tuple(entry["keys"][0])]) for half in entry["halves"]]}
                    for entry in state["readings"]
                ],
                "answers": state["answers"],
                "classes": {
                    name: {key: value[..., kept[name]] if value.ndim == 2 else value for key, value in moments.items()}
                    for name, moments in state["classes"].items()
                },
            }
        )
        return small

    def reduced(self, device: torch.device) -> Window:
        """What all processes have seen, exchanged in the same order by each."""
        other = Window(self._structure)
        self.settled()
        other.restore({**self.state(), "classes": {}})
        for moments in other._all():
            moments.restore(all_reduced(moments, device))
        for states in gathered({name: moments.state() for name, moments in self.classes.items()}):
            other._add_classes(states)
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
        # As tensors: a checkpoint holds no other arrays.
        classes = {
            name: {key: torch.from_numpy(value) for key, value in moments.state().items()}
            for name, moments in self.classes.items()
            if moments.count
        }
        # Not settled: a run that saves must not sum in another order than one that does not.
        pending = {name: torch.cat(found) for name, found in self._pending.items()}
        answers = {name: list(axis) for name, axis in self.answers.items()}
        read = {"readings": list(shared.values()), "answers": answers}
        return {"responses": responses, "pending": pending, "classes": classes, **read}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`, but for the moments by class, which are added to those here."""
        self._add_classes(state["classes"])
        for name, moments in state["responses"].items():
            self.statistics[name].restore(moments)
        self._pending = {name: [found] for name, found in state["pending"].items()}
        sizes = {(slot.tensor, slot.axis): slot.size for slot in self._structure.slots}
        for entry in state["readings"]:
            keys = [(str(tensor), int(axis)) for tensor, axis in entry["keys"]]
            split = SplitMoments(keys[0][0], sizes[keys[0]])
            for half, saved in zip(split.halves, entry["halves"], strict=True):
                half.restore(saved)
            self.readings.update(dict.fromkeys(keys, split))
        self.answers = {name: (str(tensor), int(axis)) for name, (tensor, axis) in state["answers"].items()}

    def _add_classes(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        for name, state in states.items():
            seen = ClassMoments(name, self.classes[name].units)
            seen.restore(state)
            self.classes[name].merge(seen)

    def _all(self) -> list[Moments]:
        splits = {id(split): split for split in self.readings.values()}
        return [*self.statistics.values(), *(half for split in splits.values() for half in split.halves)]


def _part(moments: Mapping[str, Any], features: list[int]) -> dict[str, Any]:
    """The state of the moments of some features alone."""
    if not moments["count"]:
        return dict(moments)
    mean, scatter = moments["mean"], moments["scatter"]
    return {"count": moments["count"], "mean": mean[features], "scatter": scatter[features][:, features]}
