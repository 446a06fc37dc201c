"""Where the units of a state are: the axis that holds them, and the one on which layers are stacked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reprune.core.layers import Port, Span, spans_of
from reprune.torch.tracing.recording import Labelled
from reprune.torch.tracing.structure.ports import port

A, B = torch.arange(1, 5), torch.arange(5, 9)
ALL_A, ALL_B = Span(0, "a", 0, 4), Span(0, "b", 0, 4)


def spans(line: np.ndarray) -> tuple[Span, ...]:
    return spans_of([None if not v else ("ab"[int(v > 4)], int(v - 1) % 4) for v in line])


def found(labels: torch.Tensor) -> Port | None:
    return port(Labelled(("h",), labels), lambda ids: np.where(ids < 9, ids, 0), spans)


@pytest.mark.parametrize(
    ("labels", "axis", "size", "pieces", "along"),
    [
        (A.expand(3, 4), 1, 4, ((ALL_A,),), None),
        (A[:, None].expand(4, 3), 0, 4, ((ALL_A,),), None),
        (torch.cat([A, B]).expand(3, 1, 8), 2, 8, ((ALL_A, Span(4, "b", 0, 4)),), None),
        (torch.stack([A, B])[:, None].expand(2, 3, 4), 2, 4, ((ALL_A,), (ALL_B,)), 0),
        (torch.stack([A, B], 1), 0, 4, ((ALL_A,), (ALL_B,)), 1),
        (torch.stack([A, B]).expand(3, 2, 4), 2, 4, ((ALL_A,), (ALL_B,)), 1),
        (torch.stack([A, torch.zeros_like(A)]), 1, 4, ((ALL_A,),), None),
        (A[1:2].expand(3, 1), 1, 1, None, None),
        (torch.stack([torch.cat([A, B[:1]]), torch.cat([B, A[:1]])]), 1, 5,
         ((ALL_A, Span(4, "b", 0, 1)), (ALL_B, Span(4, "a", 0, 1))), 0),
    ],
)  # fmt: skip
def test_the_axis_of_the_units(labels: torch.Tensor, axis: int, size: int, pieces: object, along: int | None) -> None:
    wanted = None if pieces is None else Port(("h",), axis, size, pieces, along)
    assert found(labels) == wanted


def test_what_holds_no_units_along_one_axis_is_no_port() -> None:
    assert found(torch.zeros(3, 4, dtype=torch.int64)) is None
    assert found(torch.arange(9, 13).expand(3, 4)) is None  # No units of a layer.
    assert found(torch.arange(1, 9).view(2, 2, 2)) is None
    assert found(torch.tensor([[1, 1], [1, 2]])) is None  # Pieces all of whose positions hold the same one.
