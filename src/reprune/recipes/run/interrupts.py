"""Ctrl-C that lets a run save before it stops."""

from __future__ import annotations

import signal
import threading
from typing import Any

from reprune.core.errors import RepruneError


class InterruptedRunError(RepruneError):
    """The user or the system asked the run to stop. What it had done is kept."""

    exit_code = 130


def stopped_by_user(error: BaseException) -> bool:
    """Whether an exception comes of Ctrl-C, which Lightning turns into an exit of its own."""
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    )


class Interrupts:
    """Notes Ctrl-C instead of raising at once; a second one raises `KeyboardInterrupt`.

    Attributes:
        asked: Whether the run was asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._old_handler: Any = None

    def listen(self) -> None:
        """Take Ctrl-C over, where that is possible: in the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._old_handler = signal.signal(signal.SIGINT, self._note)

    def restore(self) -> None:
        """Give Ctrl-C its usual meaning back."""
        if self._old_handler is not None:
            signal.signal(signal.SIGINT, self._old_handler)
            self._old_handler = None

    def _note(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
