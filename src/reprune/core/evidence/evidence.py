"""What a criterion or an allocation may look at: weights and response statistics, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from reprune.core.errors import StatisticsError
from reprune.core.evidence.class_moments import ClassMoments
from reprune.core.evidence.moments import Moments, to_numpy
from reprune.core.evidence.readings import Places, Reading
from reprune.core.layers import Role, Span, Structure

Array = Any


class LayerEvidence:
    """Weights and statistics of one layer, each computed on first use and on the tensors' own device.

    Args:
        structure: What the trace found.
        tensors: Every tensor that a slot of this layer names.
        name: The layer.
        moments: Statistics of its responses, or None when none were gathered.
        readings: All consumers of the model with what they read; empty when that was not gathered.
        classes: Moments of its responses by class; empty when no labels were given.
        gradients: Gradient of the loss with respect to the tensors; empty when no loss was given.
    """

    def __init__(
        self,
        structure: Structure,
        tensors: Mapping[str, Array],
        name: str,
        moments: Moments | None,
        readings: Sequence[Reading] = (),
        classes: ClassMoments | None = None,
        gradients: Mapping[str, Array] | None = None,
    ) -> None:
        self.name = name
        self.units = structure.layers[name].units
        self.moments = moments
        self._structure = structure
        self._tensors = tensors
        self._readings = readings
        self._classes = classes
        self._gradients = gradients or {}

    @cached_property
    def incoming(self) -> Array:
        """Incoming weights of every unit, concatenated (units × weights): 8 blocks of an LSTM, a filter. No biases."""
        blocks = self._gather("own") or self._gather("reads")  # A table that is tied to a decoder is both.
        return array_namespace(*blocks).concat(blocks, axis=1)

    @cached_property
    def outgoing(self) -> Array:
        """Columns of every unit in all its consumers, concatenated (units × weights), its own `W_hh` included.

        A consumer that reads only some of the units holds zeros for the others.
        """
        blocks = self._gather("reads") or [self.incoming[:, :0]]
        return array_namespace(*blocks).concat(blocks, axis=1)

    @cached_property
    def spectrum(self) -> NDArray[np.float64]:
        """Eigenvalues of the response covariance (units), largest first, rounding below zero clipped.

        Raises:
            StatisticsError: When no statistics were gathered, or the responses hold NaN or infinite values.
        """
        return np.clip(np.linalg.eigvalsh(self.covariance)[::-1], 0.0, None)

    @cached_property
    def covariance(self) -> NDArray[np.float64]:
        """Covariance of the responses (units × units).

        Raises:
            StatisticsError: As for `spectrum`.
        """
        return to_numpy(self._observed().covariance)

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        """Mean response (units).

        Raises:
            StatisticsError: As for `spectrum`.
        """
        return to_numpy(self._observed().mean)

    @cached_property
    def separability(self) -> NDArray[np.float64]:
        """Scatter of the responses between classes over that within them (units).

        Raises:
            StatisticsError: When no labels were given.
        """
        if self._classes is None:
            raise StatisticsError(
                f"{self.name}: this method needs the classes of the calibration sequences. Give labels=, a function of "
                "a batch."
            )
        return self._classes.separability()

    @cached_property
    def sensitivity(self) -> NDArray[np.float64]:
        """Σ |w · ∂L/∂w| over the incoming and outgoing weights of every unit (units).

        Raises:
            StatisticsError: When no loss was given.
        """
        if not self._gradients:
            raise StatisticsError(
                f"{self.name}: this method needs gradients of a loss. Give loss=, a function of model and batch."
            )
        total = np.zeros(self.units)
        for slot in self._structure.slots_of(self.name, "own", "reads"):
            products = np.abs(to_numpy(self._tensors[slot.tensor]) * to_numpy(self._gradients[slot.tensor]))
            if products.ndim >= 2:
                rows = np.moveaxis(products, slot.axis, 0).reshape(slot.size, -1).sum(axis=1)
                for span in (span for span in slot.spans if span.layer == self.name):
                    held = rows[span.start : span.start + span.units * span.each].reshape(span.units, -1).sum(axis=1)
                    total[span.unit : span.unit + span.units] += held
        return total

    def _observed(self) -> Moments:
        if self.moments is None:
            raise StatisticsError(f"{self.name}: this method needs response statistics. Give calibration batches.")
        return self.moments

    @cached_property
    def readings(self) -> list[tuple[Reading, Places]]:
        """Consumers of the layer, each with the positions of every unit on its axis (units × positions)."""
        found = []
        for reading in self._readings:
            places = reading.slot.by_unit(self.name, self.units)
            if places is not None:
                found.append((reading, places))
        return found

    def _gather(self, role: Role) -> list[Array]:
        """Weights on the axes of one role, a block for every run of units (units × weights)."""
        blocks: list[Array] = []
        for slot in self._structure.slots_of(self.name, role):
            tensor = _at_least_single(self._tensors[slot.tensor])
            if tensor.ndim < 2:
                continue
            rows = array_namespace(tensor).moveaxis(tensor, slot.axis, 0)
            blocks.extend(self._block(rows, span) for span in slot.spans if span.layer == self.name)
        return blocks

    def _block(self, rows: Array, span: Span) -> Array:
        """One row per unit of the layer out of the rows of an axis, zero for units that the span does not hold."""
        xp = array_namespace(rows)
        block = xp.reshape(rows[span.start : span.start + span.units * span.each], (span.units, -1))
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
        classes: Moments of the responses by class, by layer; empty without labels.
        gradients: Gradient of the loss with respect to each of the tensors; empty without a loss.
    """

    def __init__(
        self,
        structure: Structure,
        tensors: Mapping[str, Array],
        moments: Mapping[str, Moments] | None = None,
        readings: Sequence[Reading] = (),
        *,
        classes: Mapping[str, ClassMoments] | None = None,
        gradients: Mapping[str, Array] | None = None,
    ) -> None:
        self.structure = structure
        self.readings = tuple(readings)
        moments, classes = moments or {}, classes or {}
        self.layers = {
            name: LayerEvidence(
                structure, tensors, name, moments.get(name), self.readings, classes.get(name), gradients
            )
            for name in structure.layers
        }


def _at_least_single(tensor: Array) -> Array:
    """The tensor without its history; half precision widened, as squares overflow and differences vanish in it."""
    tensor = tensor.detach() if hasattr(tensor, "detach") else tensor
    xp = array_namespace(tensor)
    return xp.astype(tensor, xp.float32) if xp.finfo(tensor.dtype).bits < 32 else tensor
