"""Widths beside recurrent units: what the weights of a model make, where that is a layer of its own."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from reprune.core.widths import settled
from reprune.keras.tracing.tracer import Cell, Tracer


def width_layers(tracer: Tracer, kinds: Collection[str]) -> list[Cell]:
    """Layers of the widths of some kinds, after a pass; their labels are named after their units from here on.

    Args:
        tracer: What the pass left behind.
        kinds: Kinds of weights whose outputs are units (keys of `core.layers.WIDTHS`).
    """
    couplings = tracer.couplings
    widths = {name: cell for name, cell in tracer.widths.items() if cell.kind in kinds}
    classes = {name: couplings.roots(cell.labels) for name, cell in widths.items()}
    units = settled({name: held.tolist() for name, held in classes.items()}, couplings.classes().keys())
    layers = []
    for name, roots in units.items():
        labels = np.array([widths[name].labels[np.flatnonzero(classes[name] == root)[0]] for root in roots])
        couplings.name(labels, name)
        layers.append(Cell(name, widths[name].kind, len(labels), labels))
    return layers
