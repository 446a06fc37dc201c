"""One picture of a dense and a pruned model: size, speed and quality as bars beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# A phone shows all of this at nearly its own size.
_WIDTH, _PANEL, _BAR = 420, 96, 230
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


def picture(panels: Sequence[Panel], caption: Sequence[str]) -> str:
    """A self-contained SVG image, readable on light and dark pages and on phones.

    Args:
        panels: What is compared, one below the other.
        caption: Lines of some 60 letters below them.

    Example:
        >>> picture([Panel("Size", 2.0, 0.5, "MB", "4 times smaller")], ["A model"]).startswith("<svg")
        True
    """
    end = _PANEL * len(panels) + 14
    height = end + 18 * len(caption)
    lines = "".join(
        f'<text class="soft" x="4" y="{end + 18 * row}" font-size="13">{escape(line)}</text>'
        for row, line in enumerate(caption)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="system-ui, sans-serif" font-size="14" role="img" aria-label="{escape(" ".join(caption))}">'
        f"{_STYLE}{''.join(_panel(panel, _PANEL * row) for row, panel in enumerate(panels))}{lines}</svg>\n"
    )


def _panel(panel: Panel, top: int) -> str:
    largest = max(panel.dense, panel.pruned)
    note = f'<tspan class="soft" font-size="14" font-weight="400" dx="8">{escape(panel.note)}</tspan>'
    parts = [f'<text x="4" y="{top + 20}" font-size="16" font-weight="600">{escape(panel.title)}{note}</text>']
    for row, (name, value) in enumerate((("dense", panel.dense), ("pruned", panel.pruned))):
        y = top + 30 + 26 * row
        width = max(_BAR * value / largest, 1.0)
        parts.append(f'<rect class="{name}" x="4" y="{y}" width="{width:.1f}" height="20" rx="3"/>')
        said = " ".join(word for word in (name, f"{value:.3g}", panel.unit) if word)
        parts.append(f'<text x="{width + 12:.1f}" y="{y + 15}">{escape(said)}</text>')
    return "".join(parts)
