"""How a model takes batches, and what to say when it takes them in no way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from reprune.core.errors import BatchError
from reprune.core.evidence import parts
from reprune.core.evidence.parts import Way, is_row, shown, ways
from reprune.core.evidence.passes import Forward
from reprune.torch.tracing.location import of_error
from reprune.torch.tracing.running.calling import call
from reprune.torch.tracing.running.copies import duplicate
from reprune.torch.tracing.running.isolation import run_apart


def accepted(model: nn.Module, example: Any, forward: Forward | None = None) -> Forward | None:
    """How a private model takes the batches of which `example` is one; see `core.evidence.parts.accepted`.

    Raises:
        BatchError: When the model does not run on any part of it; the message says what was passed, and what would run.
    """
    return parts.accepted(
        model,
        example,
        forward,
        lambda batch, way: _failure(model, batch, way),
        lambda error: BatchError(_message(model, example, forward, error)),
        spread=True,
    )


def _failure(model: nn.Module, example: Any, forward: Forward | None) -> Exception | None:
    """What the model raises on the example."""
    with torch.no_grad():
        try:
            run_apart(duplicate(model, share=True), example, forward)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return error
    return None


def _message(model: nn.Module, example: Any, forward: Forward | None, error: Exception) -> str:
    text = (str(error).strip() or repr(error)).split("\n")[0]
    how = "forward(model, batch)" if forward is not None else type(model).__name__
    return (
        f"{how} does not run on the first batch: {text} ({of_error(error, type(error).__name__)}). It was given "
        f"{shown(example)}. {_advice(model, example, forward)}"
    )


def _advice(model: nn.Module, example: Any, forward: Forward | None) -> str:
    """What would run, found by trying; else what to look at."""
    floating = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.get_default_dtype() if floating is None else floating.dtype
    device = None if floating is None else floating.device
    changes: list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = [
        ("tensors", lambda t: t),
        (f"tensors of the model's type, {dtype}", lambda t: t.to(dtype) if t.is_floating_point() else t),
        (f"tensors on the model's device, {device}", lambda t: t.to(device)),
        (f"tensors of type {dtype} on {device}", lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype)),
        ("whole numbers (torch.int64)", lambda t: t.long()),
        ("batches of sequences (one more axis in front)", lambda t: t.unsqueeze(0)),
    ]
    for words, change in changes:
        changed = _converted(example, change)
        tried = [Way("", forward)] if forward is not None else [Way("as they are", call), *ways(changed, spread=True)]
        for way in tried:
            if _failure(model, changed, None if way.forward is call else way.forward) is None:
                part = f", with forward={way.code}" if way.code.startswith("lambda") else ""
                return f"It runs on {words}{part}: convert the batches before."
    return (
        "Give batches as the model takes them (model(x), model(*xs) or model(**named)), or say how with forward=, such "
        "as forward=lambda model, batch: model(batch[0])."
    )


def _converted(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _converted(item, change) for name, item in value.items()}
    return type(value)(_converted(item, change) for item in value) if is_row(value) else value
