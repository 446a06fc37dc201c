"""Hand-made structures and tensors: stacks of LSTM layers with a linear output, as a tracer would describe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reprune.core.evidence.evidence import Evidence
from reprune.core.evidence.moments import Moments
from reprune.core.layers import Consumer, Contraction, Extent, Layer, Pin, Site, Slot, Span, Structure

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """A stack of LSTM layers `a`, `b`, … and a linear output: sizes, structure, tensors."""

    inputs: int
    units: tuple[int, ...]
    outputs: int
    structure: Structure
    tensors: Mapping[str, Array]

    def evidence(self, responses: Mapping[str, Array] | None = None) -> Evidence:
        """Evidence from weights and, where given, rows of responses."""
        moments = {}
        for name, rows in (responses or {}).items():
            moments[name] = Moments(name, rows.shape[1])
            moments[name].update(rows)
        return Evidence(self.structure, self.tensors, moments)

    def parameters(self, counts: Mapping[str, int]) -> int:
        """Parameters by the textbook formula, one bias vector per layer."""
        total, width = 0, self.inputs
        for units in counts.values():
            total, width = total + 4 * units * (width + units + 1), units
        return total + self.outputs * (width + 1)

    def macs(self, counts: Mapping[str, int]) -> int:
        """Multiply-accumulates per time step by the textbook formula."""
        total, width = 0, self.inputs
        for units in counts.values():
            total, width = total + 4 * units * (width + units), units
        return total + self.outputs * width


def stack(
    units: Sequence[int] = (4, 3),
    *,
    inputs: int = 5,
    outputs: int = 2,
    steps: int = 7,
    index_coupled: Sequence[Sequence[str]] | None = None,
    count_coupled: Sequence[Sequence[str]] = (),
    pinned: Sequence[str] = (),
    seed: int = 0,
) -> Model:
    """A stack of LSTM layers named `a`, `b`, … that is seen for `steps` time steps."""
    rng = np.random.default_rng(seed)
    names = [chr(ord("a") + place) for place in range(len(units))]
    slots: list[Slot] = []
    tensors: dict[str, Array] = {}
    products: list[Contraction] = []
    before: tuple[str, int] | None = None
    for name, size in zip(names, units, strict=True):
        width = before[1] if before else inputs
        gates = tuple(Span(gate * size, name, 0, size) for gate in range(4))
        for tensor, shape in (("w_ih", (4 * size, width)), ("w_hh", (4 * size, size)), ("bias", (4 * size,))):
            tensors[f"{name}.{tensor}"] = rng.normal(size=shape)
            slots.append(Slot(f"{name}.{tensor}", 0, 4 * size, "own", gates))
        if before:
            slots.append(Slot(f"{name}.w_ih", 1, width, "reads", (Span(0, before[0], 0, width),)))
        slots.append(Slot(f"{name}.w_hh", 1, size, "reads", (Span(0, name, 0, size),)))
        read = Extent(0, ((before[0], 1),)) if before else Extent(inputs)
        products += [Contraction(steps, (Extent(0, ((name, 4),)), width)) for width in (read, Extent(0, ((name, 1),)))]
        before = (name, size)
    assert before is not None
    tensors["out.weight"] = rng.normal(size=(outputs, before[1]))
    slots.append(Slot("out.weight", 1, before[1], "reads", (Span(0, before[0], 0, before[1]),)))
    products.append(Contraction(steps, (Extent(outputs), Extent(0, ((before[0], 1),)))))
    layers = {
        name: Layer(name, "lstm", size, Pin(Site("output", ""), "returned") if name in pinned else None)
        for name, size in zip(names, units, strict=True)
    }
    structure = Structure(
        layers=layers,
        slots=tuple(slots),
        shapes={name: tensor.shape for name, tensor in tensors.items()},
        index_coupled=tuple(map(tuple, index_coupled or [(name,) for name in names])),
        count_coupled=tuple(map(tuple, count_coupled)),
        consumers=tuple(Consumer(slot.tensor, slot.axis) for slot in slots if slot.role == "reads"),
        contractions=tuple(products),
        steps=float(steps),
        other_parameters=outputs,
    )
    return Model(inputs, tuple(units), outputs, structure, tensors)


def responses(spectrum: Sequence[float] | Array, rows: int = 64, seed: int = 0) -> Array:
    """Rows whose population covariance has exactly these eigenvalues (rows > their number)."""
    rng = np.random.default_rng(seed)
    values = np.asarray(spectrum, dtype=float)
    free = rng.normal(size=(rows, len(values)))
    white, _ = np.linalg.qr(free - free.mean(axis=0))
    rotation, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return np.asarray((white - white.mean(axis=0)) * np.sqrt(rows * values) @ rotation.T + rng.normal(size=len(values)))
