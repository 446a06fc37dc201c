"""Sizes that a model's code gives to operations: what each of them is the number of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from reprune.torch.tracing.sizes.sizes import AxisSize, SizeInt, tagged_sizes
from tests.helpers.torch_tracing import Bench, size

Tensor = torch.Tensor
N, M = size("n", 6), size("m", 2)
ALL, FIRST, LAST = (1, 2, 3, 4, 5, 6), (1, 2), (5, 6)
ROW = torch.ones(6, dtype=torch.float64)


class Start(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.narrow = nn.Parameter(torch.randn(1, 6)), nn.Parameter(torch.randn(1, 1))


def steps_written(h: Tensor) -> Tensor:
    held = h.new_zeros(2, 4, N)
    held[:, 1:] = h[:, 1:]
    return held


# What is done with six units (2, 4, 6), and which sizes (name, factor) are the number of which.
USES: dict[str, tuple[Callable[[Tensor], Any], set[tuple[str, int, tuple[int, ...]]]]] = {
    "view": (lambda h: h.view(8, N), {("self.n", 1, ALL)}),
    "view of one axis": (lambda h: h[0, 0].view(N), {("self.n", 1, ALL)}),
    "view of a list": (lambda h: h.view([2, 4, N]), {("self.n", 1, ALL)}),
    "view, a multiple": (lambda h: h.view(8, 3 * M), {("self.m", 3, ALL)}),
    "view whose other sizes are no number of units": (lambda h: h.view(2 * M, M, N), {("self.n", 1, ALL)}),
    "reshape": (lambda h: h.transpose(0, 1).reshape(-1, N), {("self.n", 1, ALL)}),
    "reshape by name": (lambda h: h.reshape(shape=(8, N)), {("self.n", 1, ALL)}),
    "expand": (lambda h: h[:, :1].expand(2, 5, N), {("self.n", 1, ALL)}),
    "expand by name": (lambda h: h[:, :1].expand(size=(2, 5, N)), {("self.n", 1, ALL)}),
    "broadcast_to": (lambda h: h[:, :1].broadcast_to(2, 5, N), {("self.n", 1, ALL)}),
    "repeat of units": (lambda h: h.repeat(1, M, 1), set()),
    "layer_norm": (lambda h: F.layer_norm(h, (N,)), {("self.n", 1, ALL)}),
    "layer_norm over time as well": (lambda h: F.layer_norm(h, [size("t", 4), N]), {("self.n", 1, ALL)}),
    "rms_norm": (lambda h: F.rms_norm(h, normalized_shape=[N]), {("self.n", 1, ALL)}),
    "units before": (lambda h: h[..., :M], {("self.m", 1, FIRST)}),
    "one unit before": (lambda h: h[..., : size("k", 1)], {("self.k", 1, (1,))}),
    "units from": (lambda h: h[:, :, M:], {("self.m", 1, FIRST)}),
    "units after": (lambda h: h[..., -M:], {("self.m", 1, LAST)}),
    "units between": (lambda h: h[..., M : 2 * M], {("self.m", 1, FIRST), ("self.m", 2, (1, 2, 3, 4))}),
    "after another axis": (lambda h: h[:, None, 0, :M], {("self.m", 1, FIRST)}),
    "after a mask": (lambda h: h[[0, 1], :, :M], {("self.m", 1, FIRST)}),
    "steps": (lambda h: h[:, :M], set()),
    "steps before all units": (lambda h: h[:, :M, ...], set()),
    "narrow": (lambda h: h.narrow(2, 0, M), {("self.m", 1, FIRST)}),
    "narrow from": (lambda h: h.narrow(-1, M, 4), {("self.m", 1, FIRST)}),
    "narrow by name": (lambda h: h.narrow(dim=2, start=M, length=2 * M), {
        ("self.m", 1, FIRST), ("self.m", 2, (3, 4, 5, 6)),
    }),
    "windows": (lambda h: h.unfold(2, M, M), set()),
    "split": (lambda h: h.split(M, -1), {("self.m", 1, FIRST), ("self.m", 1, (3, 4)), ("self.m", 1, LAST)}),
    "split by name": (lambda h: h.split(split_size=M, dim=2), {
        ("self.m", 1, FIRST), ("self.m", 1, (3, 4)), ("self.m", 1, LAST),
    }),
    "split with a rest": (lambda h: h.split(size("k", 4), 2), {("self.k", 1, (1, 2, 3, 4))}),
    "split in two": (lambda h: torch.split(h, [M, 2 * M], 2), {("self.m", 1, FIRST), ("self.m", 2, (3, 4, 5, 6))}),
    "split of the first axis": (lambda h: h.split(size("b", 1)), set()),
    **{
        f"zeros made by {name}": (lambda h, make=make: h + make(h).double(), {("self.n", 1, ALL)})
        for name, make in {
            "zeros": lambda h: torch.zeros(2, 4, N),
            "ones": lambda h: torch.ones((2, 4, N)),
            "empty": lambda h: torch.empty(size=(2, 4, N)),
            "full": lambda h: torch.full((2, 4, N), 0.5),
            "rand": lambda h: torch.rand(N),
            "randn": lambda h: torch.randn(4, N),
            "new_zeros": lambda h: h.new_zeros(2, 4, N),
            "new_ones": lambda h: h.new_ones((2, 4, N)),
            "new_empty": lambda h: h.new_empty(size=[2, 4, N]),
            "new_full": lambda h: h.new_full((1, 1, N), 0.5),
            "new": lambda h: h.new(2, 4, N).zero_(),
            "zeros of two sizes": lambda h: torch.zeros(2, size("t", 4), N),
        }.items()
    },
    "a mask that is expanded": (lambda h: h * ROW[:1].expand(N), {("self.n", 1, ALL)}),
    "a mask of a row each": (lambda h: h * ROW[:4, None].expand(-1, N), {("self.n", 1, ALL)}),
    "a mask that is repeated": (lambda h: h * ROW[:1].repeat(2, 4, N), {("self.n", 1, ALL)}),
    "a mask repeated for every step": (lambda h: h * ROW[:1].repeat(size("t", 4), 1), set()),
    "an index that is expanded": (
        lambda h: h.gather(1, torch.zeros(2, 1, 1).long().expand(-1, -1, N)), {("self.n", 1, ALL)},
    ),
    "zeros that units are written into": (lambda h: h.new_zeros(2, 4, N).copy_(h), {("self.n", 1, ALL)}),
    "zeros that some steps are written into": (steps_written, {("self.n", 1, ALL)}),
    "nothing": (lambda h: h.view(8, 6)[:, :6] + torch.zeros(8, 6), set()),
    "a size of something without units": (lambda h: torch.ones(2, 6).view(N, 2), set()),
}  # fmt: skip


@pytest.mark.parametrize(("use", "expected"), USES.values(), ids=USES)
def test_sizes_given_to_operations(
    use: Callable[[Tensor], Any], expected: set[tuple[str, int, tuple[int, ...]]]
) -> None:
    bench = Bench()
    bench.run(use, bench.holding(bench.layer("a", 6), 2, 4, 6))
    assert bench.sizes == expected


def test_sizes_of_learned_states() -> None:
    model = Start()
    bench = Bench(model)
    bench.run(lambda: model.start.expand(3, N))
    line = tuple(bench.along("start", 1))
    assert all(line)
    assert bench.sizes == {("self.n", 1, line)}
    # An axis of one is repeated: the size is none of the weight's own, whatever it is.
    bench.run(lambda: model.narrow.expand(3, N))
    bench.run(lambda: model.start.expand(size("b", 3), -1))
    assert bench.sizes == {("self.n", 1, line)}


def test_lengths_of_axes_that_hold_units_are_remembered() -> None:
    bench = Bench()
    a = bench.layer("a", 6)
    h = bench.holding(a, 2, 4, 6)
    shape, width, width_again, steps, plain = bench.run(
        lambda h: (h.shape, h.size(-1), h.size(2), h.size(1), torch.zeros(3, 6).shape), h
    )
    assert (shape, steps, plain) == ((2, 4, 6), 4, (3, 6))
    assert not any(isinstance(value, SizeInt) for value in (*shape[:2], steps, *plain))
    for value in (shape[2], width, width_again):
        assert isinstance(value, SizeInt)
        ((term, factor),) = value.expression.terms.items()
        assert isinstance(term, AxisSize)
        assert (int(value), term.labels.tolist(), factor, value.expression.constant) == (6, a.tolist(), 1, 0)
    single = bench.holding(bench.layer("b", 1), 2, 1)
    assert type(bench.run(lambda h: h.size(-1), single)) is int
    # Zeros as long as the axis are zeros for its units.
    bench.run(lambda h: h + h.new_zeros(h.size(-1)), h)
    assert [labels.tolist() for _, labels, _ in bench.recording.sizes] == [a.tolist()]


def test_sizes_that_are_numbers_in_a_computation() -> None:
    for use, values in (
        (lambda h: h / N, 1),
        (lambda h: torch.mul(h, N), 1),
        (lambda h: h**N, 1),
        (lambda h: N / h, 1),
        (lambda h: torch.div(h, N), 1),
        (lambda h: h + N, 0),
        (lambda h: h.view(8, N), 0),
        (lambda h: h * h, 0),
    ):
        bench = Bench()
        with tagged_sizes(nn.Module()) as used:
            bench.run(use, bench.holding(bench.layer("a", 6), 2, 4, 6))
        assert len(used.values) == values
        assert all(expression is N.expression for expression, _ in used.values)


def test_quotients_that_are_the_length_of_no_units_stay() -> None:
    """`view(-1, heads, width // heads)`: if whole heads go, each is as wide as before."""
    bench = Bench()
    a = bench.layer("a", 6)
    x = bench.holding(a.view(6, 1), 2, 6, 3)
    bench.run(lambda h: h.view(2, 6, size("width", 18) // size("heads", 6)), x)
    ((first, second),) = bench.recording.steady
    assert [(str(term), int(factor)) for term, factor in first.terms.items()] == [("self.width", 1)]
    assert [(str(term), int(factor)) for term, factor in second.terms.items()] == [("self.heads", 3)]
    assert not bench.recording.sizes
