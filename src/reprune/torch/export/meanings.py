"""For export: what the free sizes of a trace mean, `time` or `batch`, so that they are named alike in every file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from reprune.core.layers import Structure


def recurrent_weights(structure: Structure) -> list[str]:
    """The weights that units of a layer are made with and go into: the recurrent ones, of cells written by hand too."""
    return [
        own.tensor
        for layer in structure.layers
        for own in structure.slots_of(layer, "own")
        if any(read.tensor == own.tensor for read in structure.slots_of(layer, "reads"))
    ]


def meanings(
    met: Mapping[Any, str], program: Any, weights: Collection[str], states: Iterable[Collection[Any]]
) -> dict[Any, str]:
    """`time` or `batch` for the symbols of a trace, as far as it tells.

    Args:
        met: Sizes that recurrent modules met, as expressions, with what they mean there.
        program: The trace.
        weights: Names of the recurrent weights in it: a state that one is multiplied with has a row for each sequence.
        states: The sizes of each input that is a state: the one of them that is free is the batch.
    """
    found = {size: name for size, name in met.items() if size.is_symbol}
    # Half as many steps as a strided convolution before was given are steps all the same.
    derived = [(size, name) for size, name in met.items() if not size.is_symbol]
    derived += [(size, "batch") for sizes in (*states, *_products(program, weights)) for size in _lone(sizes)]
    for size, name in derived:
        symbols = list(size.free_symbols)
        if len(symbols) == 1:
            found.setdefault(symbols[0], name)
    return found


def _lone(sizes: Collection[Any]) -> list[Any]:
    """The one size that is free; none where there are more."""
    free = [size.node.expr for size in sizes if isinstance(size, torch.SymInt) and not size.node.expr.is_number]
    return free if len(free) == 1 else []


def _products(program: Any, weights: Collection[str]) -> Iterable[Any]:
    """Shapes of what is computed from these weights and from something else."""
    signature = program.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    alone = {node for node in program.graph.nodes if named.get(node.name) in set(weights)}
    parameters = {node for node in program.graph.nodes if node.name in named}
    for node in program.graph.nodes:
        given = set(node.all_input_nodes)
        if not given & alone:
            continue
        if given <= alone | parameters:
            alone.add(node)  # A transposed weight, or two of them side by side.
        elif isinstance(node.meta.get("val"), torch.Tensor):
            yield node.meta["val"].shape
