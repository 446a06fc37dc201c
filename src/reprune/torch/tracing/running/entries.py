"""Entering a model: the calls that come from outside of it, of whatever method of whatever part.

Most models are entered by `model(x)`. With `forward=lambda model, batch: model.act(*batch)` it is another method, with
`forward=lambda model, batch: model.head(model.rnn(*batch)[0])` it is parts, one after the other. All are the model's
interface: what they are given, states among it, comes from the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from types import FunctionType
from typing import Any

from torch import nn

from reprune.torch.tracing.leaves import Change, Path, positional_names, replaced_arguments

_ARGUMENT = re.compile(r"(?:(?P<owner>.*)\.)?(?P<method>[^.()]+)\((?P<name>[^()]*)\)")


@dataclass(frozen=True)
class Entry:
    """A method by which a model is entered.

    Attributes:
        owner: Path of the part that it is of, empty for the model itself.
        method: Its name.
    """

    owner: str = ""
    method: str = "forward"

    def path(self, path: Path) -> Path:
        """What plans call this path of an argument: `("act(state)", 0)`; the model's own `forward` is not named."""
        if self == Entry():
            return path
        return (f"{self.owner}{'.' if self.owner else ''}{self.method}({path[0]})", *path[1:])

    def replaced(self, method: Callable[..., Any], args: Any, kwargs: Any, change: Change) -> Any:
        """Arguments of this method with `change(path, tensor)` in the place of every tensor."""
        return replaced_arguments(
            positional_names(method), args, kwargs, lambda path, tensor: change(self.path(path), tensor)
        )


def entry_of(path: Path) -> Entry:
    """The method that an argument is of, from what plans call it."""
    found = _ARGUMENT.fullmatch(str(path[0]))
    return Entry(found["owner"] or "", found["method"]) if found else Entry()


Arguments = Callable[
    [Entry, Callable[..., Any], tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]
]


@contextmanager
def entered(model: nn.Module, change: Arguments, *, everywhere: bool) -> Iterator[None]:
    """In this context, calls that enter the model are made with the arguments that `change` makes of them.

    Args:
        model: The model.
        change: A function of the entry, its method, and the arguments that the caller gives.
        everywhere: Whether the caller may enter by any method of any part; by the model's `forward` alone otherwise.
    """
    inside = [0]
    undo: list[tuple[dict[str, Any], str, Any]] = []
    for owner, module in model.named_modules() if everywhere else [("", model)]:
        for method in _methods(module) if everywhere else ["forward"]:
            held = vars(module)
            undo.append((held, method, held.get(method)))
            held[method] = _watched(getattr(module, method), Entry(owner, method), change, inside)
    try:
        yield
    finally:
        for held, method, before in undo:
            if before is None:
                held.pop(method, None)
            else:
                held[method] = before


def _methods(module: nn.Module) -> list[str]:
    """`forward`, and what the user's own classes define beside it."""
    kinds = [kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.")]
    found = [name for kind in kinds for name, value in vars(kind).items() if isinstance(value, FunctionType)]
    return list(dict.fromkeys(["forward", *(name for name in found if not name.startswith("__"))]))


def _watched(method: Callable[..., Any], entry: Entry, change: Arguments, inside: list[int]) -> Callable[..., Any]:
    @wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not inside[0]:
            args, kwargs = change(entry, method, args, kwargs)
        inside[0] += 1
        try:
            return method(*args, **kwargs)
        finally:
            inside[0] -= 1

    return run
