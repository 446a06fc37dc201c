"""Figures as numbers for the template: SVG paths in a plane of 1000 × 100, which the page stretches to its width.

Text is not part of the plane; the template sets it at percentages of it, so that it stays readable at any width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log10

import numpy as np
from numpy.typing import NDArray

from reprune.core.allocation.energy import Energy, share
from reprune.core.errors import RepruneError
from reprune.core.methods import get_method
from reprune.core.plan import Plan
from reprune.report.overview import coupled_groups

WIDTH, HEIGHT = 1000.0, 100.0
_DECADES = 6  # what an eigenvalue axis shows at most, below the largest
_LEFT = 4  # what the axis of the energy left out shows at most, below 100%
_POINTS = 400  # of a curve: more than a screen's pixels per figure
_CELLS = 256  # of a strip of units


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of one layer.

    Attributes:
        layer: Name of the layer.
        units: Number of units, which is the number of components.
        kept: Number of units that stay: where the spectrum is cut.
        energy: Share of the energy in the first `kept` components; None for a layer that never responds.
        half: Components that hold half of the energy.
        asked: Components that the threshold alone asks for, or None without a threshold.
        groups: Labels of the groups on whose mean spectrum the cut was decided.
        curve: Energy that is left out by so many components as a path, on a logarithmic axis that begins at 100%.
        area: The part of the plane under `curve` up to the cut.
        left: Powers of ten that the axis of `curve` spans.
        bars: Eigenvalues on a logarithmic axis as a path.
        kept_bars: Those up to the cut.
        decades: Powers of ten that the axis of `bars` spans.
    """

    layer: str
    units: int
    kept: int
    energy: float | None
    half: int = 0
    asked: int | None = None
    groups: tuple[str, ...] = ()
    curve: str = ""
    area: str = ""
    left: int = 1
    bars: str = ""
    kept_bars: str = ""
    decades: int = 0

    @property
    def cut(self) -> float:
        """Where the cut is, in per cent of the width."""
        return 100 * self.kept / self.units

    def level(self, energy: float) -> float:
        """Where what is left out at a share of energy stands on the axis of `curve`, in per cent from the top."""
        return float(_depth(np.array([1.0 - energy]), self.left)[0])


@dataclass(frozen=True)
class Scores:
    """Which units of one layer go.

    Attributes:
        layer: Name of the layer.
        kept: Units that stay.
        removed: Units that go, with their scores (None without scores), in the order in which they go.
        units: Number of units.
        low: Score at the bottom of the axis.
        high: Score at its top.
        bars: Scores in rising order as a path, or empty without scores.
        removed_bars: Those of the units that go.
        strip: Units in their own order: full height where all stay, none where all go.
        each: Neighbouring units drawn as one column of the strip.
    """

    layer: str
    kept: list[int]
    removed: list[tuple[int, float | None]]
    units: int
    low: float = 0.0
    high: float = 0.0
    bars: str = ""
    removed_bars: str = ""
    strip: str = ""
    each: int = 1


def energy_threshold(plan: Plan) -> float | None:
    """The share of energy that every pruned layer keeps at least, where the method cut by it.

    A plan does not hold the threshold, but its cuts do: it is the least energy that any of the pruned layers keeps.
    """
    try:
        if not isinstance(get_method(plan.method).resolve()[0], Energy):
            return None
    except RepruneError:
        # A method of the user's own is recorded by its representation.
        if "energy" not in plan.method.lower():
            return None
    left = [
        float(_energy(shares)[len(plan.kept[name]) - 1])
        for name, shares in _shares(plan).items()
        if len(plan.kept[name]) < len(shares) and shares.any()
    ]
    return min(left, default=None)


def spectra(plan: Plan) -> list[Spectrum]:
    """Every layer's spectrum, in the order of the model."""
    threshold = energy_threshold(plan)
    decided = _shares(plan)
    groups = coupled_groups(plan.structure)
    figures = []
    for name in plan.structure.layers:
        values = np.clip(np.asarray(plan.diagnostics.spectra.get(name, ()), dtype=float), 0.0, None)
        units, kept = len(values), len(plan.kept[name])
        if units == 0:
            continue
        if not values.any():
            figures.append(Spectrum(name, units, kept, None))
            continue
        energy = np.cumsum(share(values))
        left_out = _left_out(share(values))
        left = _decades(np.append(left_out, 1.0), _LEFT)
        decades = _decades(values)
        heights = np.clip(1 + np.log10(np.maximum(values / values[0], 1e-300)) / decades, 0.0, 1.0)
        figures.append(
            Spectrum(
                layer=name,
                units=units,
                kept=kept,
                energy=float(energy[kept - 1]) if kept < units else 1.0,
                half=_components(energy, 0.5),
                asked=None if threshold is None else _components(_energy(decided[name]), threshold),
                groups=tuple(group.label for group in groups if name in group.layers),
                curve=_line(_depth(left_out, left)),
                area=_line(_depth(left_out, left), upto=kept) + f"V{HEIGHT:g}H0Z",
                left=left,
                bars=_bars(heights),
                kept_bars=_bars(heights, 0, kept),
                decades=decades,
            )
        )
    return figures


def scores(plan: Plan) -> list[Scores]:
    """Which units go from every layer that loses some or was scored, in the order of the model."""
    figures = []
    for name, layer in plan.structure.layers.items():
        values = np.asarray(plan.diagnostics.scores.get(name, ()), dtype=float)
        kept, gone = plan.kept[name], plan.removed()[name]
        strip, each = _strip(layer.units, kept)
        if not len(values):
            if gone:
                figures.append(Scores(name, kept, [(unit, None) for unit in gone], layer.units, strip=strip, each=each))
            continue
        low, high = _axis(values)
        # Units that go come first, in the order of their scores; without manual changes to the plan that is one order.
        order = [*sorted(gone, key=values.__getitem__), *sorted(kept, key=values.__getitem__)]
        heights = np.clip((values[order] - low) / (high - low), 0.02, 1.0)
        figures.append(
            Scores(
                layer=name,
                kept=kept,
                removed=[(unit, float(values[unit])) for unit in order[: len(gone)]],
                units=layer.units,
                low=low,
                high=high,
                bars=_bars(heights, len(gone), layer.units),
                removed_bars=_bars(heights, 0, len(gone)),
                strip=strip,
                each=each,
            )
        )
    return figures


def _shares(plan: Plan) -> dict[str, NDArray[np.float64]]:
    """The normalised spectrum that decided over each layer: the mean over the layers that lose units together."""
    own = {
        name: share(np.clip(np.asarray(values, dtype=float), 0.0, None))
        for name, values in plan.diagnostics.spectra.items()
        if len(values)
    }
    return {
        name: np.mean([own[name], *(own[other] for other in _partners(plan, name) if other in own)], axis=0)
        for name in own
    }


def _partners(plan: Plan, name: str) -> list[str]:
    """Other layers that lose units together with this one, directly or through a third."""
    together = {name}
    bonds = [set(group.layers) for group in coupled_groups(plan.structure)]
    while more := {other for bond in bonds if bond & together for other in bond} - together:
        together |= more
    return [other for other in plan.structure.layers if other in together and other != name]


def _left_out(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the components after each one hold."""
    return np.append(np.cumsum(shares[::-1])[::-1][1:], 0.0)


def _energy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    # What is not lost: a mean over a group in which some layers never respond sums to less than one.
    return 1.0 - _left_out(shares)


def _components(energy: NDArray[np.float64], threshold: float) -> int:
    return min(int(np.searchsorted(energy, threshold - 1e-9)) + 1, len(energy))


def _decades(values: NDArray[np.float64], most: int = _DECADES) -> int:
    positive = values[values > 0]
    return min(max(int(np.ceil(log10(positive.max() / positive.min()) - 1e-9)), 1), most)


def _depth(left: NDArray[np.float64], decades: int) -> NDArray[np.float64]:
    """Shares on a logarithmic axis from 1 at the top over so many powers of ten, in per cent of its height."""
    return np.clip(-100 * np.log10(np.maximum(left, 1e-300)) / decades, 0.0, 100.0)


def _axis(values: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of a score axis: from zero, unless the scores are much closer to one another than to zero."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return (0.0, high) if high > 0 else (low - 1.0, high)
    return (0.0 if 0 <= low < 0.5 * high else low - 0.25 * (high - low), high)


def _line(depths: NDArray[np.float64], upto: int | None = None) -> str:
    """A polyline from the upper left corner, at these depths: that of k components at k / H of the width."""
    units = len(depths)
    end = units if upto is None else upto
    marks = np.unique(np.linspace(1, end, min(end, _POINTS)).round().astype(int))
    return "M0 0" + "".join(f"L{WIDTH * k / units:.5g} {HEIGHT * depths[k - 1] / 100:.4g}" for k in marks)


def _bars(heights: NDArray[np.float64], first: int = 0, last: int | None = None) -> str:
    """Bars `first` to `last`, each 1 / H wide, drawn as one outline; equal neighbours and wide runs drawn together."""
    units = len(heights)
    last = units if last is None else last
    if first >= last:
        return ""
    edges = np.unique(np.linspace(first, last, min(last - first, _POINTS) + 1).round().astype(int))
    steps = [
        f"V{HEIGHT * (1 - heights[start:stop].max()):.4g}H{WIDTH * stop / units:.5g}"
        for start, stop in pairwise(edges.tolist())
    ]
    return f"M{WIDTH * first / units:.5g} {HEIGHT:g}" + "".join(steps) + f"V{HEIGHT:g}Z"


def _strip(units: int, kept: Sequence[int]) -> tuple[str, int]:
    """Units in their own order, in columns as high as the share of their units that stays."""
    each = -(-units // _CELLS)
    stays = np.zeros(units)
    stays[kept] = 1.0
    path, last = "", -1.0
    for start in range(0, units, each):
        height = float(stays[start : start + each].mean())
        if height != last:
            close = f"V{HEIGHT:g}Z" if last > 0 else ""
            left = WIDTH * start / units
            path += (f"H{left:.5g}{close}" if close else "") + (
                f"M{left:.5g} {HEIGHT:g}V{HEIGHT * (1 - height):.4g}" if height else ""
            )
        last = height
    return path + (f"H{WIDTH:g}V{HEIGHT:g}Z" if last > 0 else ""), each
