"""For export: calibration batches as inputs of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from reprune.core.exporting import ExportError
from reprune.torch.export.capture import Captured
from reprune.torch.export.example import Example, shape_of
from reprune.torch.export.states import StateTensor, feed_back

IN_A_ROW = 3
"""How often a batch comes with the states that it left: inputs that stay drive states further than any that change do,
and a range that is too narrow cuts them off."""


def calibration_inputs(
    plain: nn.Module, model: nn.Module, captured: Captured, states: Sequence[StateTensor], batches: Iterable[Example]
) -> list[list[Any]]:
    """Inputs of the file for calibration batches of any size, cut into pieces where the file's sizes are fixed.

    States begin anew where a batch has other sizes than the one before it, and run on otherwise.

    Args:
        plain: The model.
        model: The same model with its states as arguments.
        captured: Its trace, which knows the sizes that are free.
        states: The states.
        batches: Batches as `plain` takes them.

    Raises:
        ExportError: When there is no batch, or the model does not take one, or it is smaller than a size that is fixed.
    """
    found = []
    carried = {state.input for state in states}
    own = {name: position for position, name in enumerate(captured.example.names) if name not in carried}
    current = captured.example
    for batch in batches:
        try:
            batch.call(plain)
        except Exception as error:  # Whatever the model's own code raises.
            shapes = ", ".join(map(shape_of, batch.tensors))
            raise ExportError(f"calibration=: the model does not run on a batch of {shapes}: {error}") from error
        tensors = dict(zip(batch.names, batch.tensors, strict=True))
        if not own.keys() <= tensors.keys():
            raise ExportError(f"calibration=: a batch holds {', '.join(tensors)}; the file takes {', '.join(own)}.")
        for piece in _pieces(captured, {position: tensors[name] for name, position in own.items()}):
            if any(piece[position].shape != current.tensors[position].shape for position in piece):
                current = captured.resized(_sizes(captured, piece))
            current = current.with_tensors(lambda position, tensor, piece=piece: piece.get(position, tensor))  # type: ignore[misc]
            for _ in range(IN_A_ROW if states else 1):
                found.append(current.arrays())
                if states:
                    current = feed_back(current, states, current.call(model))
    if not found:
        raise ExportError("calibration= holds no batch.")
    return found


def _pieces(captured: Captured, tensors: dict[int, Tensor]) -> Iterator[dict[int, Tensor]]:
    """A batch's tensors, by position, in pieces of the sizes that are fixed."""
    pieces = []
    for position, tensor in tensors.items():
        like = captured.example.tensors[position]
        parts = [tensor.to(like.dtype)]
        for axis, size in enumerate(like.shape):
            if (position, axis) in captured.symbols:
                continue
            if tensor.shape[axis] < size:
                raise ExportError(
                    f"calibration=: {captured.example.names[position]} is {shape_of(tensor)} in a batch, and the file "
                    f"takes {shape_of(like)}; its axis {axis} is fixed at {size}. Give batches of at least that size."
                )
            parts = [
                part.narrow(axis, at, size) for part in parts for at in range(0, part.shape[axis] - size + 1, size)
            ]
        pieces.append(parts)
    return (dict(zip(tensors, piece, strict=True)) for piece in zip(*pieces, strict=False))


def _sizes(captured: Captured, tensors: dict[int, Tensor]) -> dict[Any, int]:
    """Values of the symbols with which the file's inputs have the sizes of these tensors."""
    return {
        symbol: tensors[position].shape[axis]
        for (position, axis), symbol in captured.symbols.items()
        if position in tensors and symbol.is_symbol
    }
