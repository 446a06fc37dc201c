"""What `inspect` returns, whatever the framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reprune.core.layers import Layer, Pin, Structure
from reprune.report.notebook import structure_html
from reprune.report.table import readers_of, render_structure


class Inspection:
    """What can be pruned in a model, and what is left alone and why; `print` it.

    Attributes:
        structure: The layers, the weights that read their units, and what ties or pins them.
        made_plain: Weights that the model computes in every call (`weight_norm`, say), each with what computes it. The
            pruned model will hold their values.

    Example:
        >>> info = reprune.inspect(model, batches)              # doctest: +SKIP
        >>> info.prunable, info.layers["lstm:l0"].units         # doctest: +SKIP
        (("lstm:l0",), 128)
    """

    def __init__(self, structure: Structure, made_plain: Sequence[str] = ()) -> None:
        self.structure = structure
        self.made_plain = tuple(made_plain)

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers found, by name; a layer's `pin` says why it must stay, or is None."""
        return dict(self.structure.layers)

    @property
    def prunable(self) -> tuple[str, ...]:
        """Names of the layers that can be pruned."""
        return self.structure.prunable

    @property
    def pinned(self) -> dict[str, Pin]:
        """Names of the layers that must stay, with the reason."""
        return {name: layer.pin for name, layer in self.structure.layers.items() if layer.pin is not None}

    def __repr__(self) -> str:
        units = sum(self.structure.layers[name].units for name in self.prunable)
        return f"Inspection({len(self.prunable)} of {len(self.layers)} layers can be pruned: {units} units)"

    def __str__(self) -> str:
        return render_structure(self.structure, made_plain=self.made_plain)

    def to_dict(self) -> dict[str, Any]:
        """The layers as plain data: kind of cell, units, what reads them, and why a layer must stay (or None)."""
        return {
            name: {
                "cell": layer.cell,
                "units": layer.units,
                "pinned": None if layer.pin is None else str(layer.pin),
                "approximate": None if layer.approximate is None else str(layer.approximate),
                "read_by": readers_of(self.structure, name),
            }
            for name, layer in self.structure.layers.items()
        }

    def _repr_html_(self) -> str:
        return structure_html(self.structure)
