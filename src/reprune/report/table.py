"""Tables in plain text: what `print(result)` and `print(reprune.inspect(…))` show."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from typing import NamedTuple

from rich.box import Box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reprune.core.answers.answers import POOR, Fidelity
from reprune.core.layers import WIDTHS, Layer, Port, Structure
from reprune.core.plan import Plan
from reprune.report.numbers import count, percent
from reprune.report.overview import Change, Group, coupled_groups, overview

# Rules under the header and between sections, nothing else: top, head, head row, mid, row, foot row, foot, bottom.
_RULES = Box("    \n    \n ── \n    \n ── \n    \n    \n    \n")


def render_table(plan: Plan, width: int | None = None, fidelity: Fidelity | None = None) -> str:
    """A plan as a table: units, parameters and MACs per time step of every layer and of the whole model.

    Args:
        plan: The plan.
        width: Width in characters; the terminal's when None.
        fidelity: How near the answers of its model are to the dense one's.

    Example:
        >>> print(render_table(plan))  # doctest: +SKIP
        iss-gm: 50.0% of units removed, 50.0% asked for
        <BLANKLINE>
        Layer             Units         Parameters   MACs per time step
        ──────────────────────────────────────────────────────────────
        lstm:l0        64 → 32    33,280 → 12,544      32,768 → 12,288
        ──────────────────────────────────────────────────────────────
        whole model    64 → 32    34,320 → 13,072      33,792 → 12,800
        removed          50.0%              61.9%                62.1%
    """
    numbers = overview(plan)
    layers = numbers.layers
    grouped = bool(numbers.groups)
    names = [
        row.name + (" (pinned)" if row.layer.pin else " (approximate)" if row.layer.approximate else "")
        for row in layers
    ]
    totals = (numbers.units, numbers.parameters, numbers.macs)
    columns = [
        _arrows([*rows, total])
        for rows, total in zip(
            zip(*((row.units, row.parameters, row.macs) for row in layers), strict=True), totals, strict=True
        )
    ]
    shown = [_Column("Layer", [*names, "whole model", "removed"], foldable=True)]
    if grouped:
        shown.append(_Column("Group", [*(" ".join(row.groups) for row in layers), "", ""]))
    shown += [
        _Column(header, [*cells, percent(total.removed)], right=True)
        for header, cells, total in zip(("Units", "Parameters", "MACs per time step"), columns, totals, strict=True)
    ]
    table = _table(shown, width, rule=len(layers))
    title = f"{plan.method}: {percent(numbers.achieved)} of {_measure(plan)} removed, {percent(plan.ratio)} asked for"
    notes = _notes(plan.structure.layers.values(), numbers.groups)
    removed = plan.removed()
    notes += _state_notes(plan.structure, lambda port: f"{port.size} → {len(port.stay(removed)[0])} wide")
    if numbers.latency:
        notes.insert(0, ("latency", numbers.latency))
    if fidelity is not None:
        said = [
            ("answers", f"compared with the dense model's on calibration data: {fidelity}."),
            ("note", fidelity.note),
        ]
        notes = [pair for pair in [*said, ("warning", POOR * fidelity.poor)] if pair[1]] + notes
    return _render(Text(title), table, notes, width)


def render_structure(structure: Structure, width: int | None = None, made_plain: Sequence[str] = ()) -> str:
    """What a trace found: every layer, what reads it, what it is tied to, and why a layer is left alone.

    Args:
        structure: The structure.
        width: Width in characters; the terminal's when None.
        made_plain: Weights that the model computes and that its pruned one will hold as plain values.
    """
    groups = coupled_groups(structure)
    layers = structure.layers
    table = _table(
        [
            _Column("Layer", list(layers), foldable=True),
            _Column("Cell", [layer.cell for layer in layers.values()]),
            _Column("Units", [count(layer.units) for layer in layers.values()], right=True),
            _Column("Can be pruned", [_able(layer) for layer in layers.values()]),
            *(
                [_Column("Group", [" ".join(g.label for g in groups if name in g.layers) for name in layers])]
                if groups
                else []
            ),
            _Column(
                "Read by", [", ".join(readers_of(structure, name)) or "no weight" for name in layers], foldable=True
            ),
        ],
        width,
    )
    whole, free = len(structure.layers), len(structure.prunable)
    units = sum(structure.layers[name].units for name in structure.prunable)
    kind = "layers" if any(layer.cell in WIDTHS for layer in structure.layers.values()) else "recurrent layers"
    title = f"{free} of {whole} {kind} can be pruned: {count(units)} units"
    notes = _notes(structure.layers.values(), groups)
    notes += [
        ("takes states", f"{name} is given initial states of its original size; it keeps accepting them.")
        for name in structure.outside_states
    ]
    notes += [("computed weight", f"{name} will be plain in the pruned model.") for name in made_plain]
    notes += _state_notes(structure, lambda port: f"{port.size} wide, less what goes of {', '.join(port.layers)}")
    return _render(Text(title), table, notes, width)


def _state_notes(structure: Structure, width: Callable[[Port], str]) -> list[tuple[str, str]]:
    """A line for each state that the caller carries, or a module keeps, with both of its widths."""
    notes = []
    for state in structure.states:
        if state.given is not None:
            back = f"comes back in {_output(state.returned)}" if state.returned else "is not returned"
            notes.append(
                ("carried state", f"argument {state.given} (axis {state.given.axis}: {width(state.given)}) {back}.")
            )
        elif state.returned is not None:
            port = state.returned
            notes.append(("carried state", f"a part comes back in {_output(port)} (axis {port.axis}: {width(port)})."))
    for port in structure.kept_states:
        name = ".".join(str(part) for part in port.path if part not in ("", "_buffers"))
        notes.append(("kept state", f"attribute {name} (axis {port.axis}: {width(port)})."))
    return notes


def _output(port: Port) -> str:
    return f"output {port}" if port.path else "the output"


def readers_of(structure: Structure, layer: str) -> list[str]:
    """Tensors that read a layer's units, its own recurrent weights aside."""
    own = {slot.tensor for slot in structure.slots_of(layer, "own")}
    return list(dict.fromkeys(slot.tensor for slot in structure.slots_of(layer, "reads") if slot.tensor not in own))


def _measure(plan: Plan) -> str:
    return "MACs" if plan.of == "macs" else plan.of


def _arrows(changes: Sequence[Change]) -> list[str]:
    """`before → after`, with the arrows of a column one below the other."""
    pairs = [(count(change.before), count(change.after)) for change in changes]
    wide = max(len(after) for _, after in pairs)
    return [f"{before} → {after:>{wide}}" for before, after in pairs]


def _notes(layers: Iterable[Layer], groups: Sequence[Group]) -> list[tuple[str, str]]:
    notes = [(f"group {group.label}", f"{group}.") for group in groups]
    for layer in layers:
        if layer.pin is not None:
            notes.append(("pinned", f"{layer.name} is left alone: {layer.pin}."))
        elif layer.approximate is not None:
            notes.append(("approximate", f"{layer.name}: units pass {layer.approximate}, which mixes them."))
    return notes


# Between two columns: the padding, and the place of a line.
_GAP = 3


class _Column(NamedTuple):
    """A column of a table.

    Attributes:
        header: What stands above it.
        cells: What stands in it.
        right: Whether cells end at one line, as numbers do.
        foldable: Whether cells may be broken anywhere, as names may.
    """

    header: str
    cells: Sequence[str]
    right: bool = False
    foldable: bool = False

    def sizes(self, width: int) -> tuple[int, int, int]:
        """How wide it wants to be, may be without a broken cell, and may be without a broken word."""
        cell = max(map(len, self.cells), default=0)
        header, word = (max(map(len, [*" ".join(text).split(), ""])) for text in ([self.header], self.cells))
        if self.foldable:
            cell = word = min(cell, width // 3)
        return max(len(self.header), *map(len, self.cells)), max(header, cell), max(header, word)


def _table(columns: Sequence[_Column], width: int | None, rule: int = 0) -> Table:
    """A table, with a rule below as many rows; where it is too narrow for its words, its last columns are left out."""
    width = width or _terminal()
    table = Table(box=_RULES, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    sizes = _fitting([column.sizes(width) for column in columns], width)
    for column, size in zip(columns, sizes, strict=False):
        table.add_column(
            Text(column.header), "", justify="right" if column.right else "left", overflow="fold", width=size
        )
    for index, row in enumerate(zip(*(column.cells for column in columns[: len(sizes)]), strict=True), 1):
        table.add_row(*_texts(row), end_section=index == rule)
    return table


def _fitting(sizes: Sequence[tuple[int, int, int]], width: int) -> list[int]:
    """Widths of as many columns as fit, cells unbroken if there is room for that, from what each wants and may have."""
    choices = ([size[kind] for size in sizes[:shown]] for shown in range(len(sizes), 0, -1) for kind in (1, 2))
    found = next((least for least in choices if sum(least) + _GAP * (len(least) - 1) <= width), [width])
    spare = width - sum(found) - _GAP * (len(found) - 1)
    for index, size in enumerate(found):
        more = min(max(sizes[index][0] - size, 0), spare)
        found[index], spare = size + more, spare - more
    return found


def _able(layer: Layer) -> str:
    return "no" if layer.pin else "approximately" if layer.approximate else "yes"


def _terminal() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def _texts(cells: Iterable[str]) -> list[Text]:
    # Text is shown as it is; a str would be searched for markup, which a layer's name may resemble.
    return [Text(cell) for cell in cells]


def _render(title: Text, table: Table, notes: Sequence[tuple[str, str]], width: int | None) -> str:
    console = Console(
        file=StringIO(),
        width=width or _terminal(),
        color_system=None,
        force_terminal=False,
        legacy_windows=False,
        _environ={},
    )
    with console.capture() as capture:
        console.print(title)
        console.print(Padding(table, (1, 0, 0, 0)))
        if notes:
            console.print()
            key = Table.grid(padding=(0, 2, 0, 0))
            for label, text in notes:
                key.add_row(Text(label, no_wrap=True), Text(text, overflow="fold"))
            console.print(key)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())
