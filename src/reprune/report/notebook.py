"""What notebooks show of a plan or an inspection: a table with a bar for each layer, in plain HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from reprune.core.layers import Structure
from reprune.core.plan import Plan
from reprune.report.numbers import count, percent
from reprune.report.overview import overview
from reprune.report.table import readers_of

# Colours that are readable on the light and the dark page of a notebook.
_BAR = '<svg width="160" height="12" role="img" aria-label="{label}"><title>{label}</title><rect width="160" height="12" rx="2" fill="#8888" /><rect width="{width:.1f}" height="12" rx="2" fill="#3b82c4" /></svg>'  # noqa: E501


def plan_html(plan: Plan) -> str:
    """Units, parameters and MACs of every layer and of the whole model before and after a plan."""
    numbers = overview(plan)
    rows = [(row.name, row.units, row.parameters, row.macs) for row in numbers.layers] + [
        ("whole model", numbers.units, numbers.parameters, numbers.macs)
    ]
    body = [
        [
            escape(name),
            _bar(units.left, f"{count(units.after)} of {count(units.before)} units left"),
            *(f"{count(change.before)} → {count(change.after)}" for change in (units, parameters, macs)),
        ]
        for name, units, parameters, macs in rows
    ]
    title = f"{plan.method}: {percent(numbers.achieved)} of {'MACs' if plan.of == 'macs' else plan.of} removed"
    return _table(title, ["Layer", "", "Units", "Parameters", "MACs per time step"], body)


Plan._repr_html_ = plan_html


def structure_html(structure: Structure) -> str:
    """Every layer with its units, what reads them, and why a layer is left alone."""
    most = max(layer.units for layer in structure.layers.values())
    body = [
        [
            escape(name),
            _bar(layer.units / most, f"{count(layer.units)} units"),
            count(layer.units),
            escape(f"no: {layer.pin}" if layer.pin else "approximately" if layer.approximate else "yes"),
            escape(", ".join(readers_of(structure, name)) or "no weight"),
        ]
        for name, layer in structure.layers.items()
    ]
    title = f"{len(structure.prunable)} of {len(structure.layers)} layers can be pruned"
    return _table(title, ["Layer", "", "Units", "Can be pruned", "Read by"], body)


def _bar(share: float, label: str) -> str:
    return _BAR.format(width=160 * min(share, 1.0), label=escape(label))


def _table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{header}</th>" for header in headers)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    caption = f'<caption style="text-align: left">{escape(title)}</caption>'
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
