"""How a model is called on a batch."""

from __future__ import annotations

import inspect as python_inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from reprune.core.evidence.parts import is_row
from reprune.core.evidence.passes import Forward
from reprune.torch.tracing.running.copies import fresh


def call(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """Run a model on a copy of one batch, into which it may write. See `invoke`."""
    return invoke(model, fresh(batch), forward)


def invoke(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """Run a model on one batch: `model(x)`, `model(*xs)` or `model(**named)`, unless `forward` says otherwise."""
    if forward is not None:
        return forward(model, batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if is_row(batch):
        return model(*batch)
    return model(batch)


def as_batch(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Forward | None]:
    """The arguments of a pass as a batch, by name where some are, and the `forward` that it takes, if it takes one."""
    if not kwargs:
        return args, None
    parameters = list(python_inspect.signature(model.forward).parameters.values())[: len(args)]
    if all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters):
        return {**dict(zip([parameter.name for parameter in parameters], args, strict=True)), **kwargs}, None
    return (args, kwargs), lambda module, batch: module(*batch[0], **batch[1])
