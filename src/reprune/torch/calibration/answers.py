"""What layers answer: their responses, seen at the weights through which they read their own units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from reprune.core.evidence.readings import Axis
from reprune.core.evidence.widths import Reader, readers_of_width
from reprune.core.layers import WIDTHS, Slot, Structure
from reprune.torch.calibration.watch import Seen, watch
from reprune.torch.surgery.apply import named_tensors
from reprune.torch.tracing.cells import declared
from reprune.torch.tracing.recording import tensors_in

See = Callable[[str, torch.Tensor, torch.Tensor | None], None]
"""`see(layer, responses, batch_sizes)`: … × sequences × units, or rows × units with the sequences at every step."""


def readers(structure: Structure, name: str) -> list[Reader]:
    """Weights that show a layer's responses by what they read.

    A recurrent layer's own read its state. What a width answers is what the first weight after it reads, be it as a
    sum with other widths.
    """
    if structure.layers[name].cell in WIDTHS:
        return readers_of_width(structure, name)[:1]
    places = [(slot, slot.by_unit(name, structure.layers[name].units)) for slot in own_readers(structure, name)]
    return [Reader(slot, held) for slot, held in places if held is not None]


def own_readers(structure: Structure, name: str) -> list[Slot]:
    """Weights of a layer (with its projection, if there is one) that read the layer's own units.

    A cell written by hand has one, that feeds its state back. A kernel shows by its answers which one that is: others
    read units that are coupled with the layer's.
    """
    cell = name.removesuffix(":projection")
    pair = [layer for layer in (cell, f"{cell}:projection") if layer in structure.layers]
    own = {slot.tensor for layer in pair for slot in structure.slots_of(layer, "own")}
    reads = list(structure.slots_of(name, "reads"))
    found = [slot for slot in reads if slot.tensor in own]
    # Of a written state that goes round through several weights, none is its own: the first one reads it.
    return (found or reads)[:1] if structure.layers[name].cell == "custom" else found


def declared_cells(model: nn.Module, structure: Structure) -> dict[str, nn.Module]:
    """Layers that are cells which the user declared: they show their responses in what they return, and only there."""
    written = [name for name, layer in structure.layers.items() if layer.cell == "custom"]
    cells = {name: model.get_submodule(name.split(":")[0]) for name in written}
    return {name: module for name, module in cells.items() if declared(module) is not None}


@contextmanager
def watch_responses(model: nn.Module, structure: Structure, see: See) -> Iterator[None]:
    """Within this context and thread, forward passes report every layer's responses."""
    answers = Answers(model, structure, see)
    with watch_declared(model, structure, see), watch(named_tensors(model), answers.axes, answers):
        yield


class Answers:
    """A listener that hands on what layers answer.

    A recurrent kernel shows the states that it returns; a cell written by hand those that it feeds back, where it does.
    """

    def __init__(self, model: nn.Module, structure: Structure, see: See) -> None:
        self._see = see
        self._layers: dict[Axis, list[tuple[str, bool, torch.Tensor]]] = {}
        elsewhere = declared_cells(model, structure)
        for name, layer in structure.layers.items():
            # A kernel shows its states by its answers; whatever else reads them reads a width or a written state.
            read = layer.cell == "custom" or layer.cell in WIDTHS
            for slot, places in readers(structure, name) if name not in elsewhere else ():
                self._layers.setdefault((slot.tensor, slot.axis), []).append((name, read, torch.from_numpy(places)))

    @property
    def axes(self) -> list[Axis]:
        """The weights that are to be watched."""
        return list(self._layers)

    def of(self, seen: Seen) -> list[tuple[str, torch.Tensor]]:
        """Layers that answer with what was read, each with the places of its units (units × positions)."""
        return [(name, at) for name, read, at in self._layers.get(seen.axis, ()) if read != seen.answers]

    def read(self, seen: Seen) -> None:
        """See `Listener.read`."""
        held = seen.features.shape[-1]
        for name, places in self.of(seen):
            at = places - seen.first
            if int(at.min()) < 0 or int(at.max()) >= held:
                continue
            if at.shape == (held, 1):
                self._see(name, seen.features, seen.batch_sizes)
            for position in at.T if at.shape != (held, 1) else ():
                self._see(name, seen.features[..., position.to(seen.features.device)], seen.batch_sizes)

    def feed_back(self, axis: Axis, first: torch.Tensor, last: torch.Tensor) -> None:
        """See `Listener.feed_back`."""


@contextmanager
def watch_declared(model: nn.Module, structure: Structure, see: See) -> Iterator[None]:
    """The part of `watch_responses` that is about declared cells."""
    with ExitStack() as stack:
        for name, module in declared_cells(model, structure).items():
            handle = module.register_forward_hook(_returned(name, structure.layers[name].units, see))
            stack.callback(handle.remove)
        yield


def _returned(name: str, units: int, see: See) -> Callable[..., None]:
    def watch_output(_: nn.Module, args: Any, output: Any) -> None:
        found = next((t for t in tensors_in(output) if t.ndim > 1 and t.shape[-1] == units), None)
        if found is not None:
            see(name, found.detach(), None)

    return watch_output


def rows(features: torch.Tensor) -> torch.Tensor:
    """Features as rows (n × features)."""
    return features.reshape(-1, features.shape[-1])
