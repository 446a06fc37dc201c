"""Layers whose units alternate along an axis that a weight reads: states stacked behind their units, then flattened.

`h.permute(1, 2, 0).flatten(1)` puts the first unit of every layer first, then the second one of every layer. With
fewer units the order stays only if all of the layers lose the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from reprune.torch.tracing.labels import NONE, Couplings, Ids
from reprune.torch.tracing.recording import Recording, RecurrentLayer


def couple_interleaved(recording: Recording, layers: Mapping[str, RecurrentLayer]) -> None:
    """Couple layers of one size whose units alternate on an axis of a weight, unit by unit."""
    owner = _owners(recording.couplings, layers)
    sizes = np.array([len(layer.labels) for layer in layers.values()])
    held = list(layers.values())
    for labels in recording.axes.values():
        line = owner[recording.couplings.roots(labels)]
        together = _interleaved(line, sizes)
        if len(set(sizes[together].tolist())) == 1:
            for other in together[1:]:
                recording.couplings.union(held[together[0]].labels, held[other].labels)


def _owners(couplings: Couplings, layers: Mapping[str, RecurrentLayer]) -> Ids:
    """For every class the index of the first layer that holds it, -1 where there is none."""
    owner = np.full(len(couplings.all()), -1)
    for index, layer in reversed(list(enumerate(layers.values()))):
        owner[couplings.roots(layer.labels)] = index
    owner[NONE] = -1
    return owner


def _interleaved(line: Ids, sizes: Ids) -> list[int]:
    """Layers that others interrupt: in more than one run on the line, not all of which are the whole layer."""
    starts = np.flatnonzero(np.diff(line, prepend=-2))
    runs = list(zip(line[starts].tolist(), np.diff([*starts.tolist(), len(line)]).tolist(), strict=True))
    return [
        index
        for index in sorted({index for index, _ in runs if index >= 0})
        if len(lengths := [length for one, length in runs if one == index]) > 1
        and any(length % sizes[index] for length in lengths)
    ]
