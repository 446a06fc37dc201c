"""Weights by their memory: which parameter a tensor is a piece of, and where it lies on the parameter's axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reprune.torch.tracing.labels import ShadowMemory
from reprune.torch.tracing.weights import LAST, Weights


class Held(nn.Module):
    """Two parameters in one memory, one whose rows are not its lines in memory, a cube, a line and a single row."""

    def __init__(self) -> None:
        super().__init__()
        shared = torch.zeros(20)
        self.p, self.q = nn.Parameter(shared[:12].view(3, 4)), nn.Parameter(shared[12:].view(2, 4))
        self.turned = nn.Parameter(torch.zeros(5, 4).t()[:, 1:])  # (4, 4), strides (1, 4), from the second row on.
        shapes = (2, 3, 4), (4,), (1, 5), (1, 2)
        self.cube, self.line, self.row, self.pair = (nn.Parameter(torch.zeros(*shape)) for shape in shapes)
        self.register_buffer("nothing", torch.zeros(0))


MODEL = Held()
SIZES = [12, 8, 16, 24, 4, 5, 2]
STARTS = dict(zip(("p", "q", "turned", "cube", "line", "row", "pair"), np.cumsum([1, *SIZES]).tolist(), strict=False))


def numbers(name: str) -> Tensor:
    """The number of each element, in the parameter's own order."""
    held = MODEL.get_parameter(name)
    return STARTS[name] + torch.arange(held.numel()).view(held.shape)


def remembered(memory: ShadowMemory, labels: Tensor) -> Tensor:
    """An activation whose elements are those of weights."""
    found = torch.zeros(labels.shape)
    memory.set(found, labels)
    return found


def test_elements_are_numbered_in_the_order_of_parameters() -> None:
    weights = Weights(MODEL)
    assert list(weights.tensors) == list(STARTS)
    for name, view in (
        ("p", lambda t: t), ("p", lambda t: t.t()[1:, ::2]), ("q", lambda t: t[1]), ("turned", lambda t: t[1:3, 2:]),
        ("cube", lambda t: t.permute(2, 0, 1)), ("row", lambda t: t.expand(3, 5)),
    ):  # fmt: skip
        piece = view(MODEL.get_parameter(name).detach())
        assert weights.hold(piece)
        assert weights.owner(piece) == name
        found = weights.element_ids(piece)
        assert found is not None
        assert torch.equal(-found, view(numbers(name))), name
    assert not weights.hold(torch.zeros(3))
    assert weights.owner(torch.zeros(3)) is None
    name, first = weights.derive(torch.zeros(2, 3))
    assert (name, first) == ("computed:7", 1 + sum(SIZES))
    assert weights.derive(torch.zeros(2)) == ("computed:8", first + 6)


@pytest.mark.parametrize(
    ("name", "view", "axes"),
    [
        ("p", lambda t: t, [(0, [0, 1, 2]), (1, [0, 1, 2, 3])]),
        ("p", lambda t: t.t(), [(1, [0, 1, 2, 3]), (0, [0, 1, 2])]),
        ("p", lambda t: t[1:, ::2], [(0, [1, 2]), (1, [0, 2])]),
        ("q", lambda t: t[:, 1:3], [(0, [0, 1]), (1, [1, 2])]),
        ("turned", lambda t: t[1:], [(0, [1, 2, 3]), (1, [0, 1, 2, 3])]),
        ("cube", lambda t: t[1].t(), [(2, [0, 1, 2, 3]), (1, [0, 1, 2])]),
        ("cube", lambda t: t.permute(2, 0, 1), [(2, [0, 1, 2, 3]), (0, [0, 1]), (1, [0, 1, 2])]),
        ("line", lambda t: t[None], [None, (0, [0, 1, 2, 3])]),
        ("row", lambda t: t, [(0, [0]), (1, [0, 1, 2, 3, 4])]),
        ("row", lambda t: t.t(), [(1, [0, 1, 2, 3, 4]), (0, [0])]),
        ("row", lambda t: t[:, 1:], [None, (1, [1, 2, 3, 4])]),
        ("cube", lambda t: t.view(6, 4), [None, (2, [0, 1, 2, 3])]),
    ],
)
@pytest.mark.parametrize("copied", [False, True])
def test_positions_of_a_piece_on_the_axes_of_its_parameter(name: str, view: object, axes: object, copied: bool) -> None:
    weights, memory = Weights(MODEL), ShadowMemory()
    piece = remembered(memory, -view(numbers(name))) if copied else view(MODEL.get_parameter(name).detach())
    for dim, wanted in enumerate(axes):
        if copied and piece.size(dim) == 1:
            continue  # What one line of a computed weight is made of, no position tells.
        found = [(axis, places.tolist(), held.all()) for axis, places, held in weights.along(piece, dim, memory)]
        assert found == ([] if wanted is None else [((name, wanted[0]), wanted[1], True)]), dim


def test_weights_side_by_side_and_on_a_diagonal() -> None:
    weights, memory = Weights(MODEL), ShadowMemory()
    both = remembered(memory, -torch.cat([numbers("p"), numbers("q")]))
    first, second = weights.along(both, 0, memory)
    assert (first[0], first[2].tolist(), first[1][:3].tolist()) == (("p", 0), [True] * 3 + [False] * 2, [0, 1, 2])
    assert (second[0], second[2].tolist(), second[1][3:].tolist()) == (("q", 0), [False] * 3 + [True] * 2, [0, 1])
    found = [(axis, places.tolist()) for axis, places, _ in weights.along(both, 1, memory)]
    assert found == [(("p", 1), [0, 1, 2, 3]), (("q", 1), [0, 1, 2, 3])]
    diagonal = remembered(memory, -torch.diag(numbers("line")))
    for dim in range(2):
        ((axis, places, held),) = weights.along(diagonal, dim, memory)
        assert (axis, places.tolist(), held.tolist()) == (("line", 0), [0, 1, 2, 3], [True] * 4)
    # Elements of states from outside are numbered below those of weights, and are none.
    state = remembered(memory, torch.full((2, 4), -LAST))
    assert not list(weights.along(state, 1, memory))
    assert not list(weights.along(torch.zeros(2, 4), 1, memory))
    assert not list(weights.along(remembered(memory, -numbers("pair")), 0, memory))  # One line of a computed weight.
    assert not list(weights.along(remembered(memory, torch.tensor([[3, 4]])), 1, memory))  # Units.


def test_several_axes_of_a_weight_along_one_of_a_piece() -> None:
    weights, memory = Weights(MODEL), ShadowMemory()
    cube, grid = MODEL.cube, np.indices((2, 3)).reshape(2, 6).tolist()
    merged = weights.merged(cube.detach().view(6, 4), 0, memory)
    assert merged is not None
    assert (merged[0], {axis: at.tolist() for axis, at in merged[1].items()}) == ("cube", {0: grid[0], 1: grid[1]})
    turned = remembered(memory, -numbers("cube").permute(2, 1, 0).reshape(4, 6))
    merged = weights.merged(turned, -1, memory)
    assert merged is not None
    assert {axis: at.tolist() for axis, at in merged[1].items()} == {0: [0, 1] * 3, 1: [0, 0, 1, 1, 2, 2]}
    factors = {
        "slow first": (cube.detach().view(6, 4), 0, [0, 1]), "fast first": (turned, 1, [1, 0]),
        "three": (cube.detach().view(24), 0, [0, 1, 2]),
    }  # fmt: skip
    for name, (piece, dim, axes) in factors.items():
        assert [(held is cube, axis) for held, axis in weights.factors(piece, dim, memory)] == [
            (True, a) for a in axes
        ], name
    for piece, dim in (
        (remembered(memory, -numbers("cube")[:, :2].reshape(4, 4)), 0),  # Not all of the second axis.
        (remembered(memory, -numbers("cube").view(6, 4)[[0, 4, 2, 3, 1, 5]]), 0),  # In another order.
        (cube.detach(), 1),
        (remembered(memory, -torch.cat([numbers("p"), numbers("q")])), 0),  # Of two weights.
        (torch.zeros(6, 4), 0),
    ):
        ((held, axis),) = weights.factors(piece, dim, memory)
        assert (held is piece or held is cube, axis) == (True, dim)
    assert weights.merged(remembered(memory, -torch.cat([numbers("p"), numbers("q")])), 0, memory) is None
    holes = -numbers("p").clone()
    holes[1, 1] = 0
    assert weights.merged(remembered(memory, holes), 0, memory) is None
