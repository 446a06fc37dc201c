"""Batches as loaders give them: what of a batch the model takes is found by trying.

A loader of (x, y) pairs, a dictionary with labels or a batch of a tokeniser holds more than `forward` wants. The first
batch is given as it is; if that fails, its parts are, largest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from reprune.core.errors import BatchError, BatchWarning, warn
from reprune.core.evidence.passes import Forward
from reprune.torch.tracing.location import of_error
from reprune.torch.tracing.running.calling import call, is_row
from reprune.torch.tracing.running.copies import duplicate
from reprune.torch.tracing.running.isolation import run_apart


class _Way(NamedTuple):
    """One way to give a batch to a model, as it is written and as it is done."""

    code: str
    forward: Forward


def accepted(model: nn.Module, example: Any, forward: Forward | None = None) -> Forward | None:
    """How a private model takes the batches of which `example` is one: None for as they are, or a `forward`.

    Warns:
        BatchWarning: When only a part of a batch is taken; the message has the `forward` that says so.

    Raises:
        BatchError: When the model does not run on any part of it; the message says what was passed, and what would run.
    """
    error = _failure(model, example, forward)
    if error is None:
        return forward
    if forward is None:
        for way in _ways(example):
            if _failure(model, example, way.forward) is None:
                warn(
                    f"{type(model).__name__} does not take a whole batch ({_shown(example)}). A part of it is given: "
                    f"forward={way.code}. Pass that as forward= if it is what you want, or another one.",
                    BatchWarning,
                )
                return way.forward
    raise BatchError(_message(model, example, forward, error)) from error


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


def _ways(batch: Any) -> Iterator[_Way]:
    """Parts of a batch that a model may take, largest first."""
    if isinstance(batch, Mapping):
        names = [name for name in batch if isinstance(name, str)]
        for left_out in _labels_first(names):
            yield _named([name for name in names if name not in left_out])
        for name in names:
            yield _item(name)
    elif isinstance(batch, (list, tuple)):
        yield _Way("lambda model, batch: model(batch)", lambda m, b: m(b))
        for count in range(len(batch) if not is_row(batch) else len(batch) - 1, 1, -1):
            yield _first(count)
        for place, part in enumerate(batch):
            yield from _part(place, part)


def _labels_first(names: Sequence[str]) -> Iterator[list[str]]:
    """Which names to leave out: those that sound like answers, then from the last one on."""
    answers = [name for name in names if name.lower().rstrip("s") in ("label", "target", "y", "answer", "class")]
    if answers and len(answers) < len(names):
        yield answers
    for count in range(1, len(names)):
        yield list(names[-count:])


def _named(names: Sequence[str]) -> _Way:
    code = f"lambda model, batch: model(**{{name: batch[name] for name in {list(names)}}})"
    return _Way(code, lambda model, batch: model(**{name: batch[name] for name in names}))


def _part(place: int, part: Any) -> Iterator[_Way]:
    if isinstance(part, Mapping):
        yield _Way(f"lambda model, batch: model(**batch[{place}])", lambda m, b: m(**b[place]))
    elif is_row(part):
        yield _Way(f"lambda model, batch: model(*batch[{place}])", lambda m, b: m(*b[place]))
    yield _item(place)


def _item(key: str | int) -> _Way:
    return _Way(f"lambda model, batch: model(batch[{key!r}])", lambda model, batch: model(batch[key]))


def _first(count: int) -> _Way:
    return _Way(f"lambda model, batch: model(*batch[:{count}])", lambda model, batch: model(*batch[:count]))


# -- what to say when nothing runs -----------------------------------------------------------------------------------


def _message(model: nn.Module, example: Any, forward: Forward | None, error: Exception) -> str:
    text = (str(error).strip() or repr(error)).split("\n")[0]
    how = "forward(model, batch)" if forward is not None else type(model).__name__
    return (
        f"{how} does not run on the first batch: {text} ({of_error(error, type(error).__name__)}). It was given "
        f"{_shown(example)}. {_advice(model, example, forward)}"
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
        ways = [_Way("", forward)] if forward is not None else [_Way("as they are", call), *_ways(changed)]
        for way in ways:
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


def _shown(value: Any, depth: int = 2) -> str:
    """What was passed, with kinds and shapes."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array {value.shape} of {value.dtype}"
    if isinstance(value, Mapping) and depth:
        return "{" + ", ".join(f"{name!r}: {_shown(item, depth - 1)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)) and depth:
        return f"a {type(value).__name__} of " + ", ".join(_shown(item, depth - 1) for item in value[:8])
    return f"a {type(value).__name__}"
