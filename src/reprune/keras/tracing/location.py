"""Lines of the user's own code: where an operation was called, or an error raised."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import keras

_LIBRARIES = (Path(str(keras.__file__)).parent, Path(__file__).parents[2])
_LINES: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


@contextmanager
def noted_lines() -> Iterator[None]:
    """While this is entered, the lines are noted that call operations on symbolic tensors."""
    original = keras.Operation.symbolic_call

    def noted(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if operation not in _LINES:
            _LINES[operation] = _last(traceback.extract_stack())
        return original(operation, *args, **kwargs)

    keras.Operation.symbolic_call = noted
    try:
        yield
    finally:
        keras.Operation.symbolic_call = original


def line_of(operation: Any) -> str:
    """Where an operation was called, as `file:line`; empty where that is not known."""
    return _LINES.get(operation, "")


def line_of_error(error: BaseException) -> str:
    """Where an error was met in somebody's own code, as `file:line`."""
    return _last(traceback.extract_tb(error.__traceback__))


def _last(frames: Iterable[traceback.FrameSummary]) -> str:
    own = [
        frame
        for frame in frames
        if "site-packages" not in (path := Path(frame.filename)).parts
        and not any(library in path.parents for library in _LIBRARIES)
    ]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""
