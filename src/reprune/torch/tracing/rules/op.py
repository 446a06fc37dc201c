"""One operation that ran, as rules see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.tracer import Tracer

Labels = torch.Tensor | None


@dataclass
class Op:
    """One operation that ran: what it was given and what it returned.

    Attributes:
        view: Whether all that it returned are views of what it was given.
    """

    tracer: Tracer
    name: str
    func: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    out: Any
    view: bool = False

    def arg(self, index: int, name: str = "", default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[index] if index < len(self.args) else self.kwargs.get(name, default)

    @property
    def out_tensor(self) -> torch.Tensor:
        """The first tensor that it returned."""
        return next(iter(tensors_in(self.out)))

    @property
    def in_place(self) -> bool:
        """Whether it writes into its first argument."""
        name = self.func._schema.name
        return bool(name.endswith("_") and not name.endswith("__"))

    def pin(self, reason: str) -> None:
        """Pin all units among the inputs."""
        for tensor in tensors_in((self.args, self.kwargs)):
            self.tracer.pin(self.tracer.units(tensor), self.name, reason)


Rule = Callable[[Op], Any]
