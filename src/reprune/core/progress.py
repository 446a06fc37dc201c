"""What is being done, told to whoever shows it: the stage of the work, and how far it is.

The logger `reprune` is told each stage as it begins, at level INFO.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str, int, int | None], object]
"""Told the stage, how many of its steps are done, and of how many, if that is known."""

log = logging.getLogger("reprune")
"""What a program may want to hear. It has no handler, so that Python shows its warnings and nothing below."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def tell(stage: str, done: int = 0, total: int | None = None) -> None:
    """Say how far a stage is."""
    if not done:
        log.info("%s", stage)
    listener = _listener.get()
    if listener is not None:
        listener(stage, done, total)


def told(stage: str, items: Iterable[T], total: int | None = None) -> Iterator[T]:
    """The same items; how many were gone through is told.

    Example:
        >>> with listening(print):
        ...     list(told("observing", "ab", 2))
        observing 0 2
        observing 1 2
        observing 2 2
        ['a', 'b']
    """
    tell(stage, 0, total)
    for done, item in enumerate(items, start=1):
        yield item
        tell(stage, done, total)


def heard() -> bool:
    """Whether somebody is listening."""
    return _listener.get() is not None


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within this context and thread, a listener is told."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
