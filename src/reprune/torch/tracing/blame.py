"""Which line of the user's code couples the units of layers: couplings are gone through again, one by one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from reprune.core.layers import Site
from reprune.torch.tracing.labels import Couplings
from reprune.torch.tracing.recording import Recording, RecurrentLayer


def coupled_at(recording: Recording, layers: Mapping[str, RecurrentLayer], name: str) -> Site:
    """Where units of a layer first went together with those of another one, or with each other."""
    again = Couplings()
    again.new(len(recording.couplings.all()) - 1)
    own = layers[name].labels
    others = [layer.labels for other, layer in layers.items() if other != name]
    foreign = np.concatenate(others) if others else own[:0]
    site = Site("coupling", "")
    for first, second, place in recording.couplers:
        if not again.union(first, second):
            continue
        roots = again.roots(own)
        if len(np.unique(roots)) < len(roots) or np.isin(roots, again.roots(foreign)).any():
            return place
        if np.isin(again.roots(first), roots).any():
            site = place
    return site
