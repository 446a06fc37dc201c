"""What a model's code does only while it trains: a second pass, so that a pruned model can be trained further."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from reprune.torch.tracing.recording import Recording


def trains_otherwise(model: nn.Module) -> bool:
    """Whether code of the model's own asks for the mode: PyTorch's modules do the same with any number of units."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    return any(
        _asks(function.__code__)
        for kind in kinds
        if not kind.__module__.startswith(("torch.", "builtins"))
        for function in vars(kind).values()
        if isinstance(function, FunctionType)
    )


def _asks(code: CodeType) -> bool:
    return "training" in code.co_names or any(_asks(part) for part in code.co_consts if isinstance(part, CodeType))


def trace_training(model: nn.Module, recording: Recording, call: Callable[[], Any]) -> None:
    """Run a traced model in training mode; what it costs counts in evaluation mode alone.

    A model that does not train on the example (a normalisation over a batch of one, say) is left at what is known.
    """
    with training_mode(model), recording.not_counted():
        try:
            call()
        except Exception:
            return


@contextmanager
def training_mode(model: nn.Module, training: bool = True) -> Iterator[None]:
    """Put every module in training mode, or in evaluation mode, and back as each of them was."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was
