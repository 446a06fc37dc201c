"""Help where a table of options has no room: it would cut their names off."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

_MEANING = 38  # columns that a table leaves at least to what an option means, frame included


def fit_terminal(command: Any) -> dict[str, Any]:
    """Let a command and those below it write their help in lines where the terminal has no room for their tables.

    Args:
        command: A command of Typer, made for this run of the program.

    Returns:
        Options of `main` that hold for it.
    """
    columns = max(shutil.get_terminal_size().columns, 20)
    for each in _all(command):
        if _names(each) + _MEANING > columns:
            _write_lines(each)
    return {"terminal_width": columns}


def _all(command: Any) -> Iterator[Any]:
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from _all(below)


def _names(command: Any) -> int:
    """Columns that the table takes for names: of options, of their opposites, of values."""
    named = [
        (max(map(len, each.opts)), max(map(len, each.secondary_opts), default=0), len(each.metavar or "<path>"))
        for each in command.params
    ]
    return sum(max(column) + 2 for column in zip(*named, strict=True))


def _write_lines(command: Any) -> None:
    context = command.context_class
    formatter = type("Lines", (context.formatter_class,), {"write_dl": _write_terms})
    command.rich_markup_mode = None
    for below in getattr(command, "commands", {}).values():
        # The whole first sentence: what is not called short is cut to one line.
        below.short_help = (below.help or "").split("\n\n")[0]
    command.context_class = type("NarrowContext", (context,), {"formatter_class": formatter})


def _write_terms(formatter: Any, rows: Any, **_: Any) -> None:
    """Each term on a line of its own, what it means below it."""
    for term, meaning in rows:
        formatter.write_text(term)
        formatter.indent()
        formatter.indent()
        formatter.write_text(meaning)
        formatter.dedent()
        formatter.dedent()
