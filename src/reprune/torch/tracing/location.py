"""Where in the user's code an operation was called."""

from __future__ import annotations

import inspect
import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch

from reprune.core.layers import Site

_REPRUNE, _PYTORCH = str(Path(__file__).parent.parent.parent), str(Path(torch.__file__).parent)
_OURS = (_REPRUNE, _PYTORCH)
_PARTS = ("torch/ragged/", "torch/surgery/attention.py")
_HANDS_ON = {"__torch_function__", "__torch_dispatch__"}
_CALLS = {("torch/tracing/running/calling.py", "invoke"), ("torch/tracing/running/entries.py", "run"),
          ("torch/tracing/cells.py", "forward")}  # fmt: skip
_RECURRENT = {torch.nn.modules.rnn.__file__, str(Path(__file__).parent.parent / "ragged" / "base.py")}


def here(operation: str) -> Site:
    """The innermost frame outside PyTorch and reprune."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((*_OURS, "<frozen")):
        frame = frame.f_back
    if frame is None:
        return Site(operation, "")
    return Site(operation, f"{frame.f_code.co_filename}:{frame.f_lineno}")


def in_recurrent_module() -> bool:
    """Whether PyTorch's or reprune's own code of recurrent modules is what called, rather than the user's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename not in _RECURRENT:
        if not frame.f_code.co_filename.startswith((*_OURS, "<frozen")):
            return False
        frame = frame.f_back
    return frame is not None


def of_error(error: BaseException, operation: str) -> Site:
    """The innermost frame outside PyTorch and reprune that an error passed through."""
    location, step = "", error.__traceback__
    while isinstance(step, TracebackType):
        name = step.tb_frame.f_code.co_filename
        if not name.startswith(_OURS):
            location = f"{name}:{step.tb_lineno}"
        step = step.tb_next
    return Site(operation, location)


def of_failure(error: BaseException, size: int) -> str:
    """The line of the user's code that an error passed through last, and what there is still of this size."""
    frame: tuple[FrameType, int] | None = None
    step = error.__traceback__
    while isinstance(step, TracebackType):
        if not step.tb_frame.f_code.co_filename.startswith(_OURS):
            frame = step.tb_frame, step.tb_lineno
        step = step.tb_next
    if frame is None:
        return ""
    found, number = frame
    names = []
    for name, value in found.f_locals.items():
        if isinstance(value, torch.Tensor) and size in value.shape:
            names.append(f"{name} is {tuple(value.shape)}")
        elif type(value) is int and value == size:
            names.append(f"{name} is {value}")
    line = linecache.getline(found.f_code.co_filename, number).strip()
    still = f", where {', '.join(names[:4])}" if names else ""
    return f" in `{line}`{still}" if line else still


def ours(error: BaseException) -> bool:
    """Whether an error was raised by reprune's own code or by PyTorch for it, rather than by the model."""
    found, step = False, error.__traceback__
    while isinstance(step, TracebackType):
        code = step.tb_frame.f_code
        # PyTorch, and modes that hand its calls on, fail on what they were given.
        if not code.co_filename.startswith(_PYTORCH) and code.co_name not in _HANDS_ON:
            found = code.co_filename.startswith(_REPRUNE) and not _runs_the_model(code)
        step = step.tb_next
    return found


def _runs_the_model(code: CodeType) -> bool:
    """Whether code of reprune's is a part of pruned models, or calls the model."""
    file = Path(code.co_filename).relative_to(_REPRUNE).as_posix()
    return file.startswith(_PARTS) or (file, code.co_name) in _CALLS


def of_function(function: Callable[..., Any]) -> str:
    """Where a function is written: `file:line`, or nothing for one that has no source."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""
