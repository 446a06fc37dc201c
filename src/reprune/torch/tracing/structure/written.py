"""Recurrent cells written out with layers and gates: found where a state goes round through weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reprune.torch.tracing.labels import Ids
from reprune.torch.tracing.recording import Axis, Recording, RecurrentLayer


def written_cells(
    recording: Recording, known: set[int], is_recurrent: Callable[[str, Ids], bool]
) -> dict[str, RecurrentLayer]:
    """Layers of units that a weight reads and that depend, through one or more weights, on what it makes of them.

    A plain cell goes round through one weight. A projected state goes round through two, and so does a memory that
    reaches the state through a weight: both what the one reads and what the other reads are units then.

    Args:
        recording: The trace.
        known: Classes of units that belong to layers already.
        is_recurrent: Whether a weight, of which an axis has these labels, is applied to what it helped to produce.
    """
    roots: dict[Axis, Ids] = {axis: recording.couplings.roots(labels) for axis, labels in recording.axes.items()}
    maps = [(read, made) for read, made in dict.fromkeys(recording.maps) if is_recurrent(read[0], recording.axes[read])]
    free = {axis: {root for root in found.tolist() if root and root not in known} for axis, found in roots.items()}
    found: dict[str, RecurrentLayer] = {}
    taken: set[int] = set()
    for read, made in maps:
        reached = set(free[made])
        while more := {
            root for start, end in maps if free[start] & reached for root in free[end] if root not in reached
        }:
            reached |= more
        state = np.array([root in reached and root in free[read] - taken for root in roots[read].tolist()])
        _, first = np.unique(roots[read][state], return_index=True)  # It may be read twice, beside its neighbours'.
        labels = recording.axes[read][state][np.sort(first)]
        # What a weight reads side by side can be states of several kinds: each is a layer.
        for held in _kinds(recording, labels):
            if len(held) < 2:
                continue
            name = read[0]
            module = name.rsplit(".", 2)[0] if name.count(".") > 1 else ""
            address = next(f"{module}:l{k}" for k in range(len(found) + 1) if f"{module}:l{k}" not in found)
            found[address] = RecurrentLayer(address, "custom", module, held)
            recording.steps.setdefault(address, recording.rows.get(name, 1))
            taken |= set(recording.couplings.roots(held).tolist())
    return found


def _kinds(recording: Recording, labels: Ids) -> list[Ids]:
    """Labels apart by what makes them: those to which one weight adds stay together."""
    couplings = recording.couplings
    roots = couplings.roots(labels)
    kinds = couplings.space(roots)
    for axis, roles in recording.roles.items():
        if "own" in roles:
            joined = kinds[np.isin(roots, couplings.roots(recording.axes[axis]))]
            if joined.size:
                kinds[np.isin(kinds, joined)] = joined.min()
    return [labels[kinds == kind] for kind in dict.fromkeys(kinds.tolist())]
