"""Batches as loaders give them: what of a batch the model takes is found by trying.

A loader of (x, y) pairs, a dictionary with labels or a batch of a tokeniser holds more than the model wants. The first
batch is given as it is; if that fails, its parts are, largest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reprune.core.errors import BatchWarning, warn
from reprune.core.evidence.passes import Forward

_ANSWERS = ("label", "target", "y", "answer", "class")


class Way(NamedTuple):
    """One way to give a batch to a model, as it is written and as it is done."""

    code: str
    forward: Forward


def accepted(
    model: Any,
    example: Any,
    forward: Forward | None,
    failure: Callable[[Any, Forward | None], Exception | None],
    refused: Callable[[Exception], Exception],
    *,
    spread: bool,
) -> Forward | None:
    """How a model takes the batches of which `example` is one: None for as they are, or a `forward`.

    Args:
        model: The model, for its name.
        example: The first batch.
        forward: The caller's; only this is tried if there is one.
        failure: What the model raises on a batch that is given to it in some way; None if it runs.
        refused: The error for the caller, from what the model raised on the whole batch.
        spread: Whether a list or dictionary is several arguments of the model, or one.

    Warns:
        BatchWarning: When only a part of a batch is taken; the message has the `forward` that says so.
    """
    error = failure(example, forward)
    if error is None:
        return forward
    if forward is None:
        for way in ways(example, spread=spread):
            if failure(example, way.forward) is None:
                warn(
                    f"{type(model).__name__} does not take a whole batch ({shown(example)}). A part of it is given: "
                    f"forward={way.code}. Pass that as forward= if it is what you want, or another one.",
                    BatchWarning,
                )
                return way.forward
    raise refused(error) from error


def ways(batch: Any, *, spread: bool) -> Iterator[Way]:
    """Parts of a batch that a model may take, largest first."""
    if isinstance(batch, Mapping):
        names = [name for name in batch if isinstance(name, str)]
        for left_out in _labels_first(names):
            yield _named([name for name in names if name not in left_out], "**" if spread else "")
        for name in names:
            yield _item(name)
    elif isinstance(batch, (list, tuple)):
        if spread:
            yield Way("lambda model, batch: model(batch)", lambda model, batch: model(batch))
        for count in range(len(batch) - 1 if is_row(batch) or not spread else len(batch), 1, -1):
            yield _first(count, "*" if spread else "")
        for place, part in enumerate(batch):
            yield from _part(place, part, spread=spread)


def is_row(batch: Any) -> bool:
    """Whether a batch is several inputs; a named tuple, such as a packed sequence, is one."""
    return isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields")


def shown(value: Any, depth: int = 2) -> str:
    """What was passed, with kinds and shapes."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = "NumPy array" if isinstance(value, np.ndarray) else "tensor"
        dtype = getattr(value.dtype, "name", str(value.dtype).removeprefix("torch."))
        return f"a {kind} {tuple(value.shape)} of {dtype}"
    if isinstance(value, Mapping) and depth:
        return "{" + ", ".join(f"{name!r}: {shown(item, depth - 1)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)) and depth:
        return f"a {type(value).__name__} of " + ", ".join(shown(item, depth - 1) for item in value[:8])
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"


def _labels_first(names: Sequence[str]) -> Iterator[list[str]]:
    """Which names to leave out: those that sound like answers, then from the last one on."""
    answers = [name for name in names if any(name.lower().removesuffix(many) in _ANSWERS for many in ("", "s", "es"))]
    if answers and len(answers) < len(names):
        yield answers
    for count in range(1, len(names)):
        yield list(names[-count:])


def _named(names: Sequence[str], stars: str) -> Way:
    code = f"lambda model, batch: model({stars}{{name: batch[name] for name in {list(names)}}})"

    def forward(model: Any, batch: Any) -> Any:
        part = {name: batch[name] for name in names}
        return model(**part) if stars else model(part)

    return Way(code, forward)


def _part(place: int, part: Any, *, spread: bool) -> Iterator[Way]:
    if spread and isinstance(part, Mapping):
        yield Way(f"lambda model, batch: model(**batch[{place}])", lambda model, batch: model(**batch[place]))
    elif spread and is_row(part):
        yield Way(f"lambda model, batch: model(*batch[{place}])", lambda model, batch: model(*batch[place]))
    yield _item(place)


def _item(key: str | int) -> Way:
    return Way(f"lambda model, batch: model(batch[{key!r}])", lambda model, batch: model(batch[key]))


def _first(count: int, star: str) -> Way:
    code = f"lambda model, batch: model({star}batch[:{count}])"
    return Way(code, lambda model, batch: model(*batch[:count]) if star else model(batch[:count]))
