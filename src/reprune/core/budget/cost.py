"""The cost model: parameters, multiply-accumulates (MACs) and latency of a model as functions of the units kept.

The first two are exact polynomials in the counts: a tensor has the product of its axes' lengths many parameters, and a
matrix product costs its rows times the product of its matrix's axes. Latency is read off a measured table.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Literal

from reprune.core.budget.latency import LatencyTable
from reprune.core.errors import BudgetError
from reprune.core.layers import Counts, Extent, Structure

Measure = Literal["units", "parameters", "macs", "latency"]
COUNTED: tuple[Measure, ...] = ("units", "parameters", "macs")
"""Measures that follow from the sizes alone; latency has to be measured."""
MEASURES: tuple[Measure, ...] = (*COUNTED, "latency")
NO_TABLE = (
    "of='latency' needs measured times, which plan(), prune() and calibrate() take of a trained model: while training, "
    "give of='macs'."
)


def tensor_extents(structure: Structure) -> dict[str, tuple[Extent, ...]]:
    """Length of every axis of every tensor that knows units, as functions of the units kept."""
    units = structure.counts()
    extents = {name: [Extent(size) for size in shape] for name, shape in structure.shapes.items()}
    for slot in structure.slots:
        extents[slot.tensor][slot.axis] = slot.extent(units)
    return {name: tuple(axes) for name, axes in extents.items()}


class CostModel:
    """Units, parameters and MACs per time step of a pruned model, before any surgery.

    Args:
        structure: What the trace found.
        latency: Measured times, for costs in `latency`.

    Example:
        >>> cost = CostModel(structure)                                     # doctest: +SKIP
        >>> cost("macs", structure.counts()), cost("macs", plan.counts())   # doctest: +SKIP
        (1053696.0, 398336.0)
    """

    def __init__(self, structure: Structure, latency: LatencyTable | None = None) -> None:
        self._structure = structure
        self._latency = latency
        self._tensors = tensor_extents(structure)
        self._parameters = [axes for name, axes in self._tensors.items() if name not in set(structure.buffers)]

    def __call__(self, of: Measure, counts: Counts) -> float:
        """Cost of the model that keeps `counts` units per layer.

        Args:
            of: `units` (prunable hidden units), `parameters` (of the whole model), `macs` (of the whole model, per
                time step: the products of one traced example divided by its number of time steps) or `latency`
                (milliseconds of one call).
            counts: Units kept, for every layer of the structure.

        Raises:
            BudgetError: When latency is asked for, and there is no table.
        """
        if of == "latency":
            if self._latency is None:
                raise BudgetError(NO_TABLE)
            return self._latency(counts)
        return float(self.polynomial(of, counts))

    def polynomial(self, of: Measure, counts: Mapping[str, Any]) -> Any:
        """The same of any kind of number: of expected counts that have a gradient, say. Latency is no polynomial."""
        if of == "units":
            return sum(counts[name] for name in self._structure.prunable)
        if of == "parameters":
            return self._structure.other_parameters + sum(_size(axes, counts) for axes in self._parameters)
        products = sum(term.rows * _size(term.extents, counts) for term in self._structure.contractions)
        return products / self._structure.steps

    def layer_parameters(self, layer: str, counts: Counts) -> int:
        """Parameters that belong to the layer itself: its gates' weights and biases."""
        return sum(_size(axes, counts) for axes in self._own(layer))

    def layer_macs(self, layer: str, counts: Counts) -> int:
        """MACs that one time step of the layer takes: each of its weights once, but for those of convolutions.

        These are taken at every place that there is in a time step. None are needed to look a row up.
        """
        if self._structure.layers[layer].cell == "embedding":
            return 0
        return round(sum(self._step(axes, counts) for axes in self._own(layer) if len(axes) > 1))

    def _step(self, axes: tuple[Extent, ...], counts: Counts) -> float:
        channels = axes[:2]
        # A term of a convolution counts its taps among its rows.
        terms = [term for term in self._structure.contractions if term.extents in (channels, channels[::-1])]
        if len(axes) == 2 or not terms:
            return _size(axes, counts)
        return sum(term.rows * _size(term.extents, counts) for term in terms) / self._structure.steps

    def _own(self, layer: str) -> list[tuple[Extent, ...]]:
        return [self._tensors[name] for name in {slot.tensor for slot in self._structure.slots_of(layer, "own")}]


def _size(axes: tuple[Extent, ...], counts: Counts) -> int:
    return prod(axis(counts) for axis in axes)
