"""Where in the user's code an operation was called."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from reprune.core.layers import Site

_OURS = (str(Path(__file__).parent.parent.parent), str(Path(torch.__file__).parent))


def here(operation: str) -> Site:
    """The innermost frame outside PyTorch and reprune."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((*_OURS, "<frozen")):
        frame = frame.f_back
    if frame is None:
        return Site(operation, "")
    return Site(operation, f"{frame.f_code.co_filename}:{frame.f_lineno}")


def of_error(error: BaseException, operation: str) -> Site:
    """The innermost frame outside PyTorch and reprune that an error passed through."""
    location, step = "", error.__traceback__
    while isinstance(step, TracebackType):
        name = step.tb_frame.f_code.co_filename
        if not name.startswith(_OURS):
            location = f"{name}:{step.tb_lineno}"
        step = step.tb_next
    return Site(operation, location)


def of_function(function: Callable[..., Any]) -> str:
    """Where a function is written: `file:line`, or nothing for one that has no source."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""
