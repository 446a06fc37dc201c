"""For export: calibration batches as inputs of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reprune.core.exporting import CALLS, ExportError
from reprune.torch.export.capture import Captured
from reprune.torch.export.example import Example, require_runs, shape_of
from reprune.torch.export.states import StateTensor, feed_back


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
    tried: set[tuple[torch.Size, ...]] = set()
    for batch in batches:
        tensors = dict(zip(batch.names, batch.tensors, strict=True))
        if not own.keys() <= tensors.keys():
            raise ExportError(f"calibration=: a batch holds {', '.join(tensors)}; the file takes {', '.join(own)}.")
        shapes = tuple(tensor.shape for tensor in batch.tensors)
        if shapes not in tried:
            # Cut into pieces, the file would take features that the model does not.
            require_runs(plain, batch, "calibration=")
            tried.add(shapes)
        for piece in _pieces(captured, {position: tensors[name] for name, position in own.items()}):
            if any(piece[position].shape != current.tensors[position].shape for position in piece):
                current = captured.resized(_sizes(captured, piece))
            current = current.with_tensors(lambda position, tensor, piece=piece: piece.get(position, tensor))  # type: ignore[misc]
            for _ in range(CALLS if states else 1):
                found.append(current.arrays())
                if states:
                    current = feed_back(current, states, require_runs(model, current, "calibration="))
    if not found:
        raise ExportError("calibration= holds no batch.")
    return found


@contextmanager
def running_on(model: nn.Module, example: Example, batches: Iterable[Sequence[Any]]) -> Iterator[None]:
    """Within this context, an error is that of the model if there is a batch on which it does not run itself.

    Args:
        model: The model with its states as arguments.
        example: Its inputs.
        batches: Others, as arrays.
    """
    try:
        yield
    except Exception:
        for arrays in batches:
            batch = example.with_tensors(lambda at, _, arrays=arrays: torch.from_numpy(arrays[at]))  # type: ignore[misc]
            require_runs(model, batch, "calibration=")
        raise


def _pieces(captured: Captured, tensors: dict[int, Tensor]) -> Iterator[dict[int, Tensor]]:
    """A batch's tensors, by position, in pieces of the sizes that are fixed."""
    pieces = []
    for position, tensor in tensors.items():
        like = captured.example.tensors[position]
        if tensor.dim() != like.dim():
            raise ExportError(
                f"calibration=: {captured.example.names[position]} is {shape_of(tensor)} in a batch, and "
                f"{shape_of(like)} in the example: each batch is what the model takes."
            )
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
