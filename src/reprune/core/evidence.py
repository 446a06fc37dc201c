"""What a criterion or an allocation may look at: weights and response statistics, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from reprune.core.errors import StatisticsError
from reprune.core.layers import Role, Span, Structure
from reprune.core.readings import Places, Reading
from reprune.core.statistics import Moments, to_numpy

Array = Any


class LayerEvidence:
    """Weights and statistics of one layer, each computed on first use and on the tensors' own device.

    Args:
        structure: What the trace found.
        tensors: Every tensor that a slot of this layer names.
        name: The layer.
        moments: Statistics of its responses, or None when none were gathered.
        readings: All consumers of the model with what they read; empty when that was not gathered.
    """

    def __init__(
        self,
        structure: Structure,
        tensors: Mapping[str, Array],
        name: str,
        moments: Moments | None,
        readings: Sequence[Reading] = (),
    ) -> None:
        self.name = name
        self.units = structure.layers[name].units
        self.moments = moments
        self._structure = structure
        self._tensors = tensors
        self._readings = readings

    @cached_property
    def incoming(self) -> Array:
        """Incoming gate weights of every unit, concatenated (units × weights): 8 blocks for an LSTM. No biases."""
        return self._gather("own")

    @cached_property
    def outgoing(self) -> Array:
        """Columns of every unit in all its consumers, concatenated (units × weights), its own `W_hh` included.

        A consumer that reads only some of the units holds zeros for the others.
        """
        return self._gather("reads")

    @cached_property
    def spectrum(self) -> NDArray[np.float64]:
        """Eigenvalues of the response covariance (units), largest first, rounding below zero clipped.

        Raises:
            StatisticsError: When no statistics were gathered, or the responses hold NaN or infinite values.
        """
        if self.moments is None:
            raise StatisticsError(f"{self.name}: this method needs response statistics. Give calibration batches.")
        values = np.linalg.eigvalsh(to_numpy(self.moments.covariance))
        return np.clip(values[::-1], 0.0, None)

    @cached_property
    def readings(self) -> list[tuple[Reading, Places]]:
        """Consumers of the layer, each with the positions of every unit on its axis (units × positions)."""
        found = []
        for reading in self._readings:
            spans = [span for span in reading.slot.spans if span.layer == self.name and span.units == self.units]
            if spans:
                positions = [span.start + np.arange(span.units * span.each).reshape(span.units, -1) for span in spans]
                found.append((reading, np.concatenate(positions, axis=1)))
        return found

    def _gather(self, role: Role) -> Array:
        blocks: list[Array] = []
        for slot in self._structure.slots_of(self.name, role):
            tensor = _at_least_single(self._tensors[slot.tensor])
            if tensor.ndim < 2:
                continue
            rows = array_namespace(tensor).moveaxis(tensor, slot.axis, 0)
            blocks.extend(self._block(rows, span) for span in slot.spans if span.layer == self.name)
        return array_namespace(*blocks).concat(blocks, axis=1)

    def _block(self, rows: Array, span: Span) -> Array:
        """One row per unit of the layer out of the rows of an axis, zero for units that the span does not hold."""
        xp = array_namespace(rows)
        block = xp.reshape(rows[span.start : span.start + span.units * span.each], (span.units, -1))
        if span.units == self.units:
            return block
        above, below = (
            xp.zeros((missing, block.shape[1]), dtype=block.dtype, device=device(block))
            for missing in (span.unit, self.units - span.unit - span.units)
        )
        return xp.concat([above, block, below], axis=0)


class Evidence:
    """Evidence about all layers of a model.

    Args:
        structure: What the trace found.
        tensors: Every tensor that a slot names, as arrays (NumPy, or PyTorch on any device).
        moments: Response statistics by layer; may be empty for methods that look at weights alone.
        readings: Consumers with statistics of what they read; may be empty for methods that do not look at them.
    """

    def __init__(
        self,
        structure: Structure,
        tensors: Mapping[str, Array],
        moments: Mapping[str, Moments] | None = None,
        readings: Sequence[Reading] = (),
    ) -> None:
        self.structure = structure
        self.readings = tuple(readings)
        moments = moments or {}
        self.layers = {
            name: LayerEvidence(structure, tensors, name, moments.get(name), self.readings) for name in structure.layers
        }


def _at_least_single(tensor: Array) -> Array:
    """The tensor without its history; half precision widened, as squares overflow and differences vanish in it."""
    tensor = tensor.detach() if hasattr(tensor, "detach") else tensor
    xp = array_namespace(tensor)
    return xp.astype(tensor, xp.float32) if xp.finfo(tensor.dtype).bits < 32 else tensor
