"""Sizes that a trace cannot see, found by trying: an attribute that must change for a smaller model to run.

Not every use of a size passes through an operation: a legacy constructor, NumPy, a number computed when the model was
built. An attribute whose value is a small multiple of a layer's units, or the number of places that they take up on an
axis, as all heads together do, may be such a size. It is one if the smaller model computes what the masked one does
once it is changed, and does not before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from reprune.core.layers import Extent, SizeAttribute, Structure
from reprune.torch.tracing.sizes.sizes import integers

_MOST = 8


def guesses(model: nn.Module, structure: Structure, block: Sequence[str]) -> Iterator[list[SizeAttribute]]:
    """Attributes that may be sizes of a block's layers: each alone, then all of the same number, then all.

    Args:
        model: The model.
        structure: What is known; attributes that it names are left out.
        block: Layers that lose units together.
    """
    units = structure.layers[block[0]].units
    spans = [span for name in block for slot in structure.slots_of(name) for span in slot.spans if span.layer == name]
    places = {span.each for span in spans if span.units == units}
    known = {(size.owner, size.path) for size in structure.sizes}
    found: dict[int, list[SizeAttribute]] = {}
    for attribute in integers(model):
        times, rest = divmod(attribute.value, units)
        if not rest and (0 < times <= _MOST or times in places) and (attribute.owner, attribute.path) not in known:
            size = SizeAttribute(attribute.owner, attribute.path, Extent(0, ((block[0], times),)))
            found.setdefault(times, []).append(size)
    singles = [size for times in sorted(found) for size in found[times]]
    yield from ([size] for size in singles[:_MOST])
    for together in (found.get(1, []), singles):
        if 1 < len(together) <= 2 * _MOST:
            yield together
