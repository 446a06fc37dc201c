"""A tracer on its own, and units to try single operations on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import nn

from reprune.torch.tracing.labels import NONE, Ids
from reprune.torch.tracing.modes import run
from reprune.torch.tracing.recording import RecurrentLayer
from reprune.torch.tracing.sizes.sizes import Attribute, Expression, SizeInt
from reprune.torch.tracing.tracer import Tracer


class Bench:
    """A tracer, tensors that hold units, and what operations made of them."""

    def __init__(self, model: nn.Module | None = None, widths: Collection[str] = ()) -> None:
        self.model: Any = model or nn.Module()
        self.tracer = Tracer(self.model, widths)
        self.recording = self.tracer.recording

    def layer(self, name: str, units: int) -> torch.Tensor:
        """A recurrent layer of so many units; returns their labels."""
        labels = self.recording.couplings.new(units)
        self.recording.layers[name] = RecurrentLayer(name, "gru", name, labels)
        return torch.from_numpy(labels)

    def holding(self, labels: torch.Tensor, *shape: int) -> torch.Tensor:
        """A random tensor whose elements hold these units."""
        tensor = torch.randn(shape or labels.shape, dtype=torch.float64)
        self.tracer.memory.set(tensor, labels)
        return tensor

    def run(self, use: Callable[..., Any], *args: Any) -> Any:
        """Call `use`, traced."""
        with torch.no_grad():
            return run(self.tracer, lambda: use(*args))

    def found(self, tensor: torch.Tensor) -> list[Any] | None:
        """Classes of the labels of a tensor's units as nested lists, None where it has none."""
        units = self.tracer.units(tensor)
        return None if units is None else self.roots(units.numpy()).tolist()

    def roots(self, labels: Ids | torch.Tensor) -> Ids:
        """The class of each label."""
        return self.recording.couplings.roots(np.asarray(labels))

    def along(self, name: str, axis: int) -> list[int]:
        """Classes of the positions on an axis of a parameter; 0 for those that nothing named."""
        size = self.tracer.tensors[name].shape[axis]
        return self.roots(self.recording.axes.get((name, axis), np.full(size, NONE))).tolist()

    def apart(self, *labels: torch.Tensor) -> bool:
        """Whether none of these units is coupled with another one."""
        every = np.concatenate([each.numpy().ravel() for each in labels])
        return len(np.unique(self.roots(every))) == len(np.unique(every))

    @property
    def sizes(self) -> set[tuple[str, int, tuple[int, ...]]]:
        """What sizes were found to be the number of: the name and the factor of each, and the labels."""
        found = set()
        for expression, labels, _ in self.recording.sizes:
            ((term, factor),) = expression.terms.items()
            assert isinstance(term, Attribute)
            found.add((str(term), int(factor), tuple(labels.tolist())))
        return found

    @property
    def pins(self) -> dict[str, set[int]]:
        """Labels of pinned units by the reason."""
        found: dict[str, set[int]] = {}
        for labels, _, reason in self.recording.pins:
            found.setdefault(reason, set()).update(labels.tolist())
        return found


def size(name: str, value: int) -> SizeInt:
    """An integer that remembers that it is an attribute of the model."""
    return SizeInt(value, Expression({Attribute("", (name,), value): Fraction(1)}))
