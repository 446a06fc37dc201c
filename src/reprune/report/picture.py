"""One picture of a dense and a pruned model: size, speed and quality as bars beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _PANEL, _BAR = 760, 240, 150
_STYLE = (
    "<style>text{fill:#1a2230}.soft{fill:#566174}.dense{fill:#9aa5b5}.pruned{fill:#2166ac}"
    "@media(prefers-color-scheme:dark){text{fill:#e8ecf2}.soft{fill:#a3afc0}.pruned{fill:#6cb0f0}}</style>"
)


@dataclass(frozen=True)
class Panel:
    """Two numbers to compare.

    Attributes:
        title: What they are.
        dense: That of the dense model.
        pruned: That of the pruned model.
        unit: What they are counted in.
        note: What the difference means, in a few words.
    """

    title: str
    dense: float
    pruned: float
    unit: str
    note: str


def picture(panels: Sequence[Panel], caption: str) -> str:
    """A self-contained SVG image, readable on light and dark pages.

    Example:
        >>> picture([Panel("Size", 2.0, 0.5, "MB", "4 times smaller")], "A model").startswith("<svg")
        True
    """
    parts = [_panel(panel, 20 + index * _PANEL) for index, panel in enumerate(panels)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} 170" font-family="system-ui, sans-serif" '
        f'font-size="13" role="img" aria-label="{escape(caption)}">{_STYLE}{"".join(parts)}'
        f'<text class="soft" x="20" y="160" font-size="12">{escape(caption)}</text></svg>\n'
    )


def _panel(panel: Panel, x: float) -> str:
    largest = max(panel.dense, panel.pruned)
    parts = [f'<text x="{x}" y="24" font-size="16" font-weight="600">{escape(panel.title)}</text>']
    for row, (name, value) in enumerate((("dense", panel.dense), ("pruned", panel.pruned))):
        y = 42 + 32 * row
        width = max(_BAR * value / largest, 1.0)
        parts.append(f'<rect class="{name}" x="{x}" y="{y}" width="{width:.1f}" height="22" rx="3"/>')
        parts.append(f'<text x="{x + width + 6:.1f}" y="{y + 16}">{value:.3g} {escape(panel.unit)}</text>')
    return "".join([*parts, f'<text class="soft" x="{x}" y="126">{escape(panel.note)}</text>'])
