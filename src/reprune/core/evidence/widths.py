"""What widths answer: a width has no state of its own, and shows at the first weight after it, by what that reads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reprune.core.evidence.moments import Moments
from reprune.core.layers import Slot, Structure


class Reader(NamedTuple):
    """A weight that shows a layer's responses, and the positions of every unit on its axis (units × positions)."""

    slot: Slot
    places: NDArray[np.int64]


def readers_of_width(structure: Structure, name: str) -> list[Reader]:
    """Weights that read a width whole, be it as a sum with others, in the order in which the model runs them."""
    together = next(group for group in structure.index_coupled if name in group)
    found = []
    for other in together:
        for slot in structure.slots_of(other, "reads"):
            places = slot.by_unit(other, structure.layers[other].units)
            if places is not None:
                found.append(Reader(slot, places))
    return found


def responses_in(moments: Moments, name: str, reader: Reader) -> Moments:
    """Moments of the responses of a layer, out of those of what a weight reads: each unit answers at all its positions.

    Args:
        moments: Of all features that the weight reads.
        name: The layer.
        reader: Where its units are among them.
    """
    found = Moments(name, len(reader.places))
    state = moments.state()
    for places in reader.places.T:
        part = Moments(name, found.size)
        scatter = state["scatter"][places][:, places]
        part.restore({"count": state["count"], "mean": state["mean"][places], "scatter": scatter})
        found.merge(part)
    return found
