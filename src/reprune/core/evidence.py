"""What a criterion or an allocation may look at: weights and response statistics, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from reprune.core.layers import Role, Structure
from reprune.core.statistics import Moments

Array = Any


class LayerEvidence:
    """Weights and statistics of one layer, each computed on first use and on the tensors' own device."""

    def __init__(self, structure: Structure, tensors: Mapping[str, Array], name: str, moments: Moments | None) -> None:
        self.name = name
        self.units = structure.layers[name].units
        self.moments = moments
        self._structure = structure
        self._tensors = tensors

    @cached_property
    def incoming(self) -> Array:
        """Incoming gate weights of every unit, concatenated (units × weights): 8 blocks for an LSTM. No biases."""
        return self._gather("own")

    @cached_property
    def outgoing(self) -> Array:
        """Columns of every unit in all its consumers, concatenated (units × weights), its own `W_hh` included."""
        return self._gather("reads")

    @cached_property
    def spectrum(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Eigenvalues of the response covariance (units), largest first, rounding below zero clipped."""
        if self.moments is None:
            raise ValueError(f"{self.name}: this method needs response statistics, and none were gathered")
        covariance = self.moments.covariance
        values = array_namespace(covariance).linalg.eigvalsh(covariance)
        return np.clip(to_numpy(values)[::-1], 0.0, None)

    def _gather(self, role: Role) -> Array:
        blocks = []
        for slot in self._structure.slots_of(self.name, role):
            tensor = self._tensors[slot.tensor]
            if tensor.ndim < 2:
                continue
            xp = array_namespace(tensor)
            rows = xp.moveaxis(tensor, slot.axis, 0)
            for span in slot.spans:
                if span.layer == self.name and span.units == self.units:
                    block = rows[span.start : span.start + span.units * span.each]
                    blocks.append(xp.reshape(block, (self.units, -1)))
        return array_namespace(*blocks).concat(blocks, axis=1)


class Evidence:
    """Evidence about all layers of a model.

    Args:
        structure: What the trace found.
        tensors: Every tensor that a slot names, as arrays (NumPy, or PyTorch on any device).
        moments: Response statistics by layer; may be empty for methods that look at weights alone.
    """

    def __init__(
        self, structure: Structure, tensors: Mapping[str, Array], moments: Mapping[str, Moments] | None = None
    ) -> None:
        self.structure = structure
        moments = moments or {}
        self.layers = {name: LayerEvidence(structure, tensors, name, moments.get(name)) for name in structure.layers}


def to_numpy(array: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A float64 NumPy copy of an array on any device."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    return np.array(array, dtype=np.float64)
