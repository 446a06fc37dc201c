"""For export: states that a model carries from one call to the next, as inputs and outputs of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reprune.torch.export.example import Example
from reprune.torch.tracing.running.copies import duplicate


@dataclass(frozen=True)
class StateTensor:
    """One state tensor of a file.

    Attributes:
        input: Name of the input that takes it.
        output: Position among the outputs of the tensor to feed back.
        start: The value at the beginning of a sequence; None for zeros.
        optional: Whether the input may be left out at the beginning, where a format knows optional inputs.
    """

    input: str
    output: int
    start: Tensor | None = None
    optional: bool = False


class Carrier(Protocol):
    """Something inside a model that holds states between calls, or could: it is given them before and asked after."""

    names: list[str]
    """A name for each state tensor."""
    starts: list[Tensor]
    """Their values at the beginning of a sequence, in the sizes of the example."""

    def give(self, states: Sequence[Tensor]) -> None:
        """Let the next call start from these."""

    def take(self) -> list[Tensor]:
        """The states after the call."""

    def reset(self) -> None:
        """Leave the model as it was before the call."""


class Stateful(nn.Module):
    """A model with one more argument, the states to start from, and one more result, the states at the end."""

    def __init__(self, model: nn.Module, carriers: Sequence[Carrier]) -> None:
        super().__init__()
        self.model = model
        self.title = type(model).__name__
        self._carriers = tuple(carriers)

    def forward(self, *args: Any, states: Sequence[Tensor] = (), **kwargs: Any) -> Any:
        """What the model returns, and beside it the states at the end if there are any."""
        rest = list(states)
        try:
            for carrier in self._carriers:
                count = len(carrier.names)
                carrier.give(rest[:count])
                rest = rest[count:]
            returned = self.model(*args, **kwargs)
            ended = [state for carrier in self._carriers for state in carrier.take()]
        finally:
            for carrier in self._carriers:
                carrier.reset()
        return (returned, ended) if ended else returned

    def example(self, example: Example) -> Example:
        """The model's example with the states of the beginning beside it."""
        states = [start for carrier in self._carriers for start in carrier.starts]
        if not states:
            return example
        names = [name for carrier in self._carriers for name in carrier.names]
        return Example(example.args, {**example.kwargs, "states": states}, (*example.names, *names))


def with_states(
    model: nn.Module, example: Example, carriers: Sequence[Carrier]
) -> tuple[nn.Module, Example, list[StateTensor]]:
    """A model whose states are arguments and results, its example, and where those states are."""
    if not carriers:
        return model, example, []
    stateful = Stateful(model, carriers)
    longer = stateful.example(example)
    own = len(longer.call(stateful)) - len(longer.names) + len(example.names)
    starts = [start for carrier in carriers for start in carrier.starts]
    states = [
        StateTensor(name, own + index, None if not bool(start.any()) else start, optional=True)
        for index, (name, start) in enumerate(zip(longer.names[len(example.names) :], starts, strict=True))
    ]
    return stateful, longer, states


def feed_back(example: Example, states: Sequence[StateTensor], outputs: Sequence[Tensor]) -> Example:
    """The inputs of the next call: those of the last one, with the states that it returned."""
    taken = {example.names.index(state.input): outputs[state.output] for state in states}
    return example.with_tensors(lambda position, tensor: taken.get(position, tensor))


def differ(first: Sequence[Tensor], second: Sequence[Tensor], tolerance: float = 1e-5) -> bool:
    """Whether two lists of outputs differ by more than rounding."""
    if [tensor.shape for tensor in first] != [tensor.shape for tensor in second]:
        return True
    pairs = [(a.double().nan_to_num(), b.double().nan_to_num()) for a, b in zip(first, second, strict=True)]
    return any(a.numel() and float((a - b).abs().max()) > tolerance * (1e-3 + float(a.abs().max())) for a, b in pairs)


def varied(example: Example) -> Example:
    """Other inputs of the same sizes: noise on what is real, another order of what is whole."""

    def change(_: int, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            generator = torch.Generator().manual_seed(1)
            return tensor + 0.5 * torch.randn(tensor.shape, generator=generator)
        return tensor.flip(-1) if tensor.dim() > 1 else tensor  # One axis of whole numbers may well be lengths.

    return example.with_tensors(change)


def fresh_outputs(model: nn.Module, *examples: Example) -> list[Tensor]:
    """What a model returns for the last of some inputs, after the others, as if it had never run before."""
    twin = duplicate(model)
    outputs: list[Tensor] = []
    for example in examples:
        outputs = [tensor.clone() for tensor in example.call(twin)]
    return outputs
