"""Equal pieces of what a cell's weight makes, of which some are not used: `r, _, n = gates.chunk(3, 1)`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import numpy as np

from reprune.torch.tracing.recording import Recording, RecurrentLayer


def couple_unused(recording: Recording, layers: Mapping[str, RecurrentLayer]) -> None:
    """A piece that nothing uses loses the same rows as those that are units of a layer: the pieces stay equal."""
    roots = recording.couplings.roots
    units = {root for layer in layers.values() for root in roots(layer.labels).tolist()}
    reads = (line for axis, line in recording.axes.items() if "reads" in recording.roles[axis])
    pinned = (labels for labels, _, _ in recording.pins)
    used = {root for line in chain(reads, pinned, recording.direct) for root in roots(line).tolist()}
    for pieces in recording.aligned:
        held = [set(roots(piece).tolist()) for piece in pieces]
        of_layer = next((piece for piece, found in zip(pieces, held, strict=True) if found <= units), None)
        for piece, found in zip(pieces, held, strict=True):
            if of_layer is not None and not found & (units | used) and np.all(piece):
                recording.couplings.union(of_layer, piece)
