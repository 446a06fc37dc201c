"""A progress bar for whoever waits at a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from reprune.core.progress import heard, listening

AFTER = 2.0
"""Seconds of work after which the bar appears."""


@contextmanager
def shown() -> Iterator[None]:
    """Within this context, the stage of the work is shown on a terminal once it has taken two seconds.

    Nothing is shown in pipes and files, nor a second bar within another one; the bar is gone afterwards.
    """
    console = Console(stderr=True)
    if heard() or not console.is_terminal:
        yield
        return
    bar = _Bar(console)
    try:
        with listening(bar.tell):
            yield
    finally:
        bar.close()


@contextmanager
def hidden() -> Iterator[None]:
    """Within this context, no bar is shown."""
    with listening(lambda stage, done, total: None):
        yield


class _Bar:
    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("", total=None)
        self._lock, self._closed = Lock(), False
        self._timer = Timer(AFTER, self._start)
        self._timer.daemon = True
        self._timer.start()

    def tell(self, stage: str, done: int, total: int | None) -> None:
        """See `core.progress.Listener`."""
        # Updates of a total to None are taken for none at all.
        self._progress.tasks[0].total = total
        self._progress.update(self._task, description=stage, completed=done)

    def _start(self) -> None:
        with self._lock:
            if not self._closed:
                self._progress.start()

    def close(self) -> None:
        """Take the bar away."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            self._progress.stop()
