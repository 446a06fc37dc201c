"""Where labels begin beside recurrent units: at the rows of weights whose output the model goes on to read.

Every such axis is a *width*: output channels of a convolution, output features of a linear map, columns of an
embedding. While the pass runs, widths may be *joined* (labels that must go together, as the channels of a group do) or
*cut* (parts that are taken by their position go on as widths of their own). What is left as a layer shows at the end,
when it is known which classes of labels belong together (`Widths.layers`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from reprune.core.layers import WIDTHS
from reprune.core.widths import settled
from reprune.torch.tracing.labels import NONE, Couplings, Ids
from reprune.torch.tracing.recording import RecurrentLayer

ALL = frozenset({"convolution", "linear", "embedding"})
"""Kinds of weights at whose rows labels can begin."""
MODULES: dict[type[nn.Module], str] = {
    nn.modules.conv._ConvNd: "convolution",
    nn.Linear: "linear",
    nn.MultiheadAttention: "linear",
    nn.Embedding: "embedding",
}
"""Modules whose weight goes by the module's name, and its kind."""


@dataclass
class Widths:
    """The widths of one traced pass.

    Attributes:
        kinds: Kinds of weights at whose rows labels begin.
        layers: The widths so far, by address, as they were before any cut.
        cuts: Positions at which a width is cut into parts, by address.
        heads: Labels along which activations were multiplied side by side.
        splits: Labels of widths that a view spread over several axes, and these axes, while it is open along which one
            they shrink.
    """

    kinds: Collection[str] = ()
    layers: dict[str, RecurrentLayer] = field(default_factory=dict)
    cuts: dict[str, set[int]] = field(default_factory=dict)
    heads: list[Ids] = field(default_factory=list)
    splits: list[tuple[torch.Tensor, list[int]]] = field(default_factory=list)
    _index: tuple[tuple[int, int], Ids, Ids] = (
        (-1, 0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    )  # fmt: skip

    @property
    def everywhere(self) -> bool:
        """Whether every width of the model counts."""
        return set(self.kinds) >= ALL

    def begin(self, kind: str, path: str, labels: Ids) -> None:
        """Labels begin at an axis of the weight of this module, or of this parameter."""
        if len(labels) > 1:  # A single unit cannot be removed.
            address = f"{path}:{WIDTHS[kind]}"
            self.layers.setdefault(address, RecurrentLayer(address, kind, path, labels))

    def cut(self, address: str, part: Ids) -> bool:
        """Take part of a width by its position; returns whether the part is one run of it."""
        places = np.flatnonzero(np.isin(self.layers[address].labels, part))
        if len(places) == 0 or places[-1] - places[0] + 1 != len(places):
            return False
        self.cuts.setdefault(address, set()).update((int(places[0]), int(places[-1]) + 1))
        return True

    def sizes(self, couplings: Couplings) -> dict[str, int]:
        """Number of classes in every width."""
        return {name: len(np.unique(couplings.roots(layer.labels))) for name, layer in self.layers.items()}

    def holding(self, classes: Ids, couplings: Couplings) -> dict[str, Ids]:
        """Which widths hold any of these classes, and which of them."""
        version = (couplings.version, len(self.layers))
        if version != self._index[0]:
            roots = [np.unique(couplings.roots(layer.labels)) for layer in self.layers.values()]
            holders = np.repeat(np.arange(len(roots)), [len(held) for held in roots])
            every = np.concatenate(roots) if roots else np.zeros(0, dtype=np.int64)
            order = np.argsort(every, kind="stable")
            self._index = (version, every[order], holders[order])
        _, every, holders = self._index
        places = np.flatnonzero(np.isin(every, classes))
        names = list(self.layers)
        return {names[index]: every[places[holders[places] == index]] for index in np.unique(holders[places]).tolist()}

    # -- after the pass ----------------------------------------------------------------------------------------------

    def settle(self, couplings: Couplings) -> None:
        """Widths that were spread over several axes, none of them open: each shrinks along the longest of them.

        Where the units already go together along all axes but one, nothing is left to do.
        """
        for labels, dims in self.splits:
            roots = couplings.roots(labels.cpu().numpy())
            varying = [dim for dim in dims if (roots != roots.take([0], dim)).any()]
            for dim in sorted(varying, key=lambda dim: -roots.shape[dim])[1:]:
                first = np.broadcast_to(roots.take([0], dim), roots.shape)
                couplings.union(first.ravel(), roots.ravel())
                roots = couplings.roots(roots)
        self.splits.clear()

    def resolved(self, couplings: Couplings, known: set[int]) -> dict[str, RecurrentLayer]:
        """The widths that are layers of their own, each with one label for every class of labels that goes together.

        Args:
            couplings: Which labels go together.
            known: Classes that are units of recurrent layers.

        Returns:
            By address, in the order in which the model runs them (see `core.widths.settled`).
        """
        heads = {root for labels in self.heads for root in couplings.roots(labels).tolist()}
        parts = [part for address in self.layers for part in self._parts(address, couplings)]
        roots = {part.name: _classes(couplings, part.labels) for part in parts}
        units = settled({name: list(held) for name, held in roots.items()}, known)
        found = []
        for part in (part for part in parts if part.name in units):
            labels = np.array([roots[part.name][root] for root in units[part.name]])
            found.append(_renamed(part, labels, "attention" if heads.issuperset(units[part.name]) else part.cell))
        return {layer.name: layer for layer in found}

    def _parts(self, address: str, couplings: Couplings) -> list[RecurrentLayer]:
        """The pieces into which a width was cut, or the whole where all of them go together."""
        whole = self.layers[address]
        bounds = sorted({0, *self.cuts.get(address, ()), len(whole.labels)})
        pieces = [
            RecurrentLayer(f"{address}[{start}:{stop}]", whole.cell, whole.module, whole.labels[start:stop])
            for start, stop in pairwise(bounds)
        ]
        if len({frozenset(_classes(couplings, piece.labels)) for piece in pieces}) == 1:
            return [whole]
        return pieces


def _classes(couplings: Couplings, labels: Ids) -> dict[int, int]:
    """The classes of labels in order of appearance, each with its first label."""
    found: dict[int, int] = {}
    for root, label in zip(couplings.roots(labels).tolist(), labels.tolist(), strict=True):
        if root != NONE:
            found.setdefault(root, label)
    return found


def _renamed(part: RecurrentLayer, labels: Ids, kind: str) -> RecurrentLayer:
    name = part.name.replace(f":{WIDTHS[part.cell]}", f":{WIDTHS[kind]}")
    return RecurrentLayer(name, kind, part.module, labels)
