"""Features that are as many as a layer's units because the model's code says so: `zeros(n, h.size(-1))` that they fill.

Nothing else ties them to the units, and nothing else can be removed from them: they go with the units, one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from reprune.torch.tracing.labels import NONE, Ids
from reprune.torch.tracing.recording import Recording, RecurrentLayer
from reprune.torch.tracing.sizes.sizes import AxisSize, Term


def couple_sized(recording: Recording, layers: Mapping[str, RecurrentLayer]) -> None:
    """Couple lines of labels that belong to no layer with the units whose number they are given as their own."""
    roots = recording.couplings.roots
    known = [root for layer in layers.values() for root in roots(layer.labels).tolist()]
    lines: dict[Term, list[Ids]] = {}
    for term, labels in _uses(recording):
        lines.setdefault(term, [term.labels] if isinstance(term, AxisSize) else []).append(labels)
    for held in lines.values():
        units = [line for line in held if np.isin(roots(line), known).all()]
        others = [line for line in held if not np.isin(roots(line), known).any()]
        for line in others if units else ():
            if len(line) == len(units[0]) == len(np.unique(roots(line))):
                recording.couplings.union(units[0], line)


def _uses(recording: Recording) -> Iterator[tuple[Term, Ids]]:
    """Sizes, each the number of labels all by itself."""
    for use in recording.sizes:
        labels = use.labels[use.labels > NONE]
        if len(use.expression.terms) == 1 and not use.expression.constant and len(use.expression.readings) == 1:
            ((term, factor),) = use.expression.terms.items()
            if factor == 1 and len(labels) == term.value:
                yield term, labels
