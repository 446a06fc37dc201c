"""Plans built by hand: stacked LSTMs with a linear head, described as a tracer would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from reprune.core.layers import Consumer, Contraction, Extent, Layer, Pin, Site, Slot, Span, Structure
from reprune.core.plan import Diagnostics, Plan

FEATURES, CLASSES = 8, 5


def stack(
    sizes: Mapping[str, int],
    *,
    pinned: Sequence[str] = (),
    approximate: Sequence[str] = (),
    index_coupled: Sequence[tuple[str, ...]] = (),
    count_coupled: Sequence[tuple[str, ...]] = (),
    other: int = 100,
) -> Structure:
    """LSTM layers on top of each other, the last one read by `head.weight`."""
    layers, slots, shapes, contractions, consumers = {}, [], {}, [], []
    below: str | None = None
    for name, H in sizes.items():
        pin = Pin(Site("aten.foo", "model.py:12"), "its units leave the model") if name in pinned else None
        site = Site("layer_norm", "model.py:34") if name in approximate else None
        layers[name] = Layer(name, "lstm", H, pin, site)
        gates = tuple(Span(gate * H, name, 0, H) for gate in range(4))
        width = sizes[below] if below else FEATURES
        tensors = {"weight_ih": (4 * H, width), "weight_hh": (4 * H, H), "bias_ih": (4 * H,), "bias_hh": (4 * H,)}
        for tensor, shape in tensors.items():
            shapes[f"{name}.{tensor}"] = shape
            slots.append(Slot(f"{name}.{tensor}", 0, 4 * H, "own", gates))
        slots.append(Slot(f"{name}.weight_hh", 1, H, "reads", (Span(0, name, 0, H),)))
        inputs = Extent(width)
        if below:
            slots.append(Slot(f"{name}.weight_ih", 1, width, "reads", (Span(0, below, 0, width),)))
            consumers.append(Consumer(f"{name}.weight_ih", 1, f"{name}.bias_ih"))
            inputs = Extent(0, ((below, 1),))
        rows = Extent(0, ((name, 4),))
        contractions += [Contraction(10, (rows, inputs)), Contraction(10, (rows, Extent(0, ((name, 1),))))]
        below = name
    assert below is not None
    shapes["head.weight"] = (CLASSES, sizes[below])
    slots.append(Slot("head.weight", 1, sizes[below], "reads", (Span(0, below, 0, sizes[below]),)))
    consumers.append(Consumer("head.weight", 1, "head.bias"))
    contractions.append(Contraction(10, (Extent(CLASSES), Extent(0, ((below, 1),)))))
    tied = {name for group in index_coupled for name in group}
    return Structure(
        layers=layers,
        slots=tuple(slots),
        shapes=shapes,
        index_coupled=(*index_coupled, *((name,) for name in sizes if name not in tied)),
        count_coupled=tuple(count_coupled),
        consumers=tuple(consumers),
        contractions=tuple(contractions),
        steps=10.0,
        other_parameters=other,
    )


def spectrum(units: int, decay: float) -> list[float]:
    """Eigenvalues that fall by a power law: the larger `decay`, the more concentrated."""
    return (3.0 * np.arange(1, units + 1, dtype=float) ** -decay).tolist()


def energy_plan(structure: Structure, decays: Mapping[str, float], threshold: float, *, seed: int = 0) -> Plan:
    """A plan that keeps what the threshold asks of every named layer, by random scores.

    A decay of `inf` is a layer that never responds. Coupled layers are decided by the mean of their shares.
    """
    rng = np.random.default_rng(seed)
    kept = {name: list(range(layer.units)) for name, layer in structure.layers.items()}
    spectra = {
        name: spectrum(structure.layers[name].units, decay)
        if np.isfinite(decay)
        else [0.0] * structure.layers[name].units
        for name, decay in decays.items()
    }
    scores = {name: (20 + 4 * rng.standard_normal(len(values))).tolist() for name, values in spectra.items()}
    for group in structure.index_coupled:
        scores |= {name: scores[group[0]] for name in group if name in scores}
    for name, values in spectra.items():
        bonds = [bond for bond in (*structure.index_coupled, *structure.count_coupled) if name in bond]
        mates = dict.fromkeys([name, *(other for bond in bonds for other in bond)])
        shares = np.mean([np.asarray(spectra[mate]) / (sum(spectra[mate]) or 1.0) for mate in mates], axis=0)
        stay = int(np.searchsorted(np.cumsum(shares), threshold - 1e-12)) + 1 if shares.any() else 1
        kept[name] = sorted(np.argsort(scores[name])[len(values) - stay :].tolist())
    total = sum(structure.counts().values())
    ratio = 1 - sum(len(units) for units in kept.values()) / total
    return Plan(structure, kept, "iss-gm", ratio, "units", Diagnostics(scores, spectra))


@pytest.fixture
def plan() -> Plan:
    """Two layers, one with a concentrated spectrum and one with a flat one."""
    return energy_plan(stack({"lstm:l0": 24, "lstm:l1": 16}), {"lstm:l0": 2.0, "lstm:l1": 0.4}, 0.9)


@pytest.fixture
def summary() -> dict[str, Any]:
    """A recipe's summary of the whole run."""
    return {
        "method": "iss-gm",
        "ratio": 0.5,
        "dense": {
            "gap": 0.98123,
            "map": 0.97,
            "hit_at_1": 0.96,
            "perr": 0.955,
            "perplexity": 82.5,
            "parameters": 5417,
            "macs": 5696,
            "latency_ms": 3.25,
        },
        "pruned": {
            "gap": 0.97611,
            "map": 0.972,
            "hit_at_1": 0.96,
            "perr": 0.951,
            "perplexity": 84.25,
            "parameters": 2345,
            "macs": 2200,
            "latency_ms": 1.75,
        },
        "units": {"lstm:l0": [24, 5], "lstm:l1": [16, 14]},
        "seconds": {"train": 61.5, "prune": 0.8, "fine_tune": 20.0},
    }


@pytest.fixture
def build_plan() -> Callable[..., Plan]:
    return energy_plan
