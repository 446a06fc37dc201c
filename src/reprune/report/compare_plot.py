"""A comparison of methods as a plot: metric against size, one line per method, the dense model as a dotted line."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, isfinite, log10

from reprune.report.compare_table import Cell

# A phone shows the whole at three quarters of its size; the legend is below.
_WIDTH = 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 420, 24, 300
# On light pages, on dark ones.
_COLOURS = (
    ("#0b6fa4", "#5cb3e0"),
    ("#c1440e", "#f0905c"),
    ("#2e7d32", "#7fc784"),
    ("#7b3fa0", "#c496e6"),
    ("#b8860b", "#e0b84a"),
    ("#00838f", "#4fc3cf"),
    ("#ad1457", "#f06b9c"),
    ("#546e7a", "#a8bac4"),
)
_MANY = 10
_LIGHT, _DARK = ("".join(f".m{index}{{color:{pair[kind]}}}" for index, pair in enumerate(_COLOURS)) for kind in (0, 1))
_STYLE = (
    f"<style>.page{{fill:#fff}}.axis{{stroke:#444;fill:none}}text{{fill:#1a2230}}{_LIGHT}@media(prefers-color-scheme:"
    f"dark){{.page{{fill:#12161d}}.axis{{stroke:#a3afc0}}text{{fill:#e8ecf2}}{_DARK}}}</style>"
)
_DASHES = ("", "7 3", "2 3", "10 3 2 3")


def svg(cells: Sequence[Cell], metric: str = "metric") -> str:
    """The plot as a self-contained SVG image.

    Metrics of which the largest is many times the smallest, as perplexities are, stand on a logarithmic axis.

    Args:
        cells: Measured models, the dense one among them; those whose metric is no finite number are left out.
        metric: Name of the vertical axis.

    Example:
        >>> svg([Cell("dense", 0.0, 0, 0.97, 64, 10, 9.0, 0.0)]).startswith("<svg")
        True
    """
    cells = [cell for cell in cells if isfinite(cell.metric)]
    lines: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        if not cell.is_dense:
            lines.setdefault((cell.method, cell.steps), []).append(cell)
    methods = list(dict.fromkeys(method for method, _ in lines))
    trained = sorted({steps for _, steps in lines})
    across = _Scale([cell.parameters for cell in cells], _LEFT, _RIGHT)
    metrics = [cell.metric for cell in cells]
    up = (_LogScale if metrics and 0 < _MANY * min(metrics) < max(metrics) else _Scale)(metrics, _BOTTOM, _TOP)
    parts = [*_axes(across, up, metric)]
    for cell in (cell for cell in cells if cell.is_dense):
        y = up(cell.metric)
        parts.append(f'<path class="axis" d="M{_LEFT} {y:.1f}H{_RIGHT}" stroke-dasharray="2 4"/>')
        parts.append(_text(_RIGHT + 6, y + 4, "dense"))
    for index, ((method, steps), found) in enumerate(lines.items()):
        # A colour for each method, dashes for how long it was fine-tuned.
        colour = methods.index(method) % len(_COLOURS)
        dash = _DASHES[trained.index(steps) % len(_DASHES)]
        label = f"{method}, {steps} steps" if steps else method
        style = 'stroke="currentColor" stroke-width="2" fill="none"' + (f' stroke-dasharray="{dash}"' if dash else "")
        points = [(across(cell.parameters), up(cell.metric)) for cell in sorted(found, key=lambda c: c.parameters)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        row = _BOTTOM + 72 + 20 * index
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="currentColor"/>' for x, y in points)
        parts.append(f'<g class="m{colour}"><path d="{path}M{_LEFT} {row}h28" {style}/>{dots}</g>')
        parts.append(_text(_LEFT + 38, row + 5, label))
    height = _BOTTOM + 68 + 20 * len(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="system-ui, sans-serif" font-size="14" role="img" '
        f'aria-label="{escape(metric)} against parameters">{_STYLE}'
        f'<rect class="page" width="{_WIDTH}" height="{height}"/>{"".join(parts)}</svg>\n'
    )


class _Scale:
    """Values to places on an axis, with round numbers to mark."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values, default=0.0), max(values, default=1.0)
        if low == high:
            low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
        spread = high - low
        self._low, self._high = low - 0.05 * spread, high + 0.05 * spread
        self._start, self._end = start, end
        step = 10.0 ** floor(log10(spread / 4))
        self._step = next(step * factor for factor in (1, 2, 5, 10) if spread / (step * factor) <= 6)

    def __call__(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        first = floor(self._low / self._step) + 1
        last = floor(self._high / self._step)
        return [mark * self._step for mark in range(first, last + 1)]


class _LogScale(_Scale):
    """The same for logarithms."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        super().__init__([log10(value) for value in values], start, end)

    def __call__(self, value: float) -> float:
        return super().__call__(log10(value))

    def ticks(self) -> list[float]:
        marks = [digit * 10.0**power for power in range(floor(self._low), ceil(self._high)) for digit in (1, 2, 5)]
        return [mark for mark in marks if self._low <= log10(mark) <= self._high]


def _axes(across: _Scale, up: _Scale, metric: str) -> list[str]:
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>']
    for value in across.ticks():
        parts.append(f'<path class="axis" d="M{across(value):.1f} {_BOTTOM}v5"/>')
        parts.append(_text(across(value), _BOTTOM + 22, _short(value), "middle"))
    for value in up.ticks():
        parts.append(f'<path class="axis" d="M{_LEFT} {up(value):.1f}h-5"/>')
        parts.append(_text(_LEFT - 8, up(value) + 4, f"{value:.4g}", "end"))
    middle = (_TOP + _BOTTOM) / 2
    turned = f'<g transform="rotate(-90 16 {middle})">{_text(16, middle, metric, "middle")}</g>'
    return [*parts, _text((_LEFT + _RIGHT) / 2, _BOTTOM + 44, "parameters", "middle"), turned]


def _short(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
