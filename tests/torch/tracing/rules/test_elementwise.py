"""Operations element by element: who is coupled with whom, which axes of parameters follow, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from reprune.torch.tracing.rules.op import Op
from reprune.torch.tracing.structure.widths import ALL
from tests.helpers.torch_tracing import Bench

Tensor = torch.Tensor


class Parameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, shape in {
            "gain": (4,),
            "shift": (1, 1, 4),
            "steps": (6, 1),
            "table": (6, 4),
            "one": (1,),
            "deep": (1, 2, 6, 4),
            "w": (3, 4),
            "rows": (3, 1),
            "columns": (4,),
            "units": (4, 1),
        }.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, dtype=torch.float64)))  # fmt: skip
        self.two = nn.Parameter(torch.ones(2).double())
        self.register_buffer("kept", torch.randn(2, 4, dtype=torch.float64))
        self.register_buffer("whole", torch.arange(1, 13).view(3, 4))


def bench_of() -> tuple[Bench, Any, Tensor, Tensor]:
    model = Parameters()
    bench = Bench(model)
    a = bench.layer("a", 4)
    return bench, model, a, bench.holding(a, 2, 6, 4)


COUPLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda x, y: x + y,
    "difference": lambda x, y: y - x,
    "of one step": lambda x, y: x * y[:, :1],
    "of one sequence": lambda x, y: y[0] * x,
    "maximum": lambda x, y: torch.maximum(x, y),
    "choice": lambda x, y: torch.where(torch.ones(6, 1) > 0, x, y),
    "lerp": lambda x, y: torch.lerp(x, y, 0.5),
    "addcmul": lambda x, y: torch.addcmul(x, y, y),
    "in place": lambda x, y: x.clone().mul_(y),
    "complex": lambda x, y: torch.complex(x, y).abs(),
    "pairs as complex numbers": lambda x, y: torch.view_as_complex(torch.stack([x, y], -1)).abs(),
    "gate": lambda x, y: F.glu(torch.cat([x, y], -1), -1),
    "atan2": lambda x, y: torch.atan2(x, y),
}


@pytest.mark.parametrize("use", COUPLES.values(), ids=COUPLES)
def test_operands_that_share_a_position_are_coupled(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    bench, _, a, h = bench_of()
    b = bench.layer("b", 4)
    out = bench.run(use, h, bench.holding(b, 2, 6, 4))
    assert bench.roots(b).tolist() == a.tolist() == bench.roots(a).tolist()
    assert bench.found(out) == a.expand(2, 6, 4).tolist()
    assert not bench.pins


def test_complex_numbers_are_pairs_of_one_unit() -> None:
    bench, _, a, h = bench_of()
    parts = bench.run(lambda h: torch.view_as_real(torch.complex(h, h * 2)), h)
    assert bench.found(parts) == a[:, None].expand(2, 6, 4, 2).tolist()
    again = bench.run(torch.view_as_complex, parts)
    assert bench.found(again) == a.expand(2, 6, 4).tolist()
    assert bench.apart(a)
    assert bench.found(bench.run(lambda: torch.view_as_complex(torch.ones(3, 2)))) is None
    assert bench.found(bench.run(lambda: F.glu(torch.ones(3, 2)))) is None


FOLLOWS: dict[str, tuple[Callable[[Any, Tensor], Tensor], set[tuple[str, int]]]] = {
    "gain": (lambda m, h: h * m.gain, {("gain", 0)}),
    "shift": (lambda m, h: m.shift + h, {("shift", 2)}),
    "a number for each step": (lambda m, h: h * m.steps, set()),
    "a row for each step": (lambda m, h: h + m.table, {("table", 1)}),
    "more axes than the units": (lambda m, h: h + m.deep, {("deep", 3)}),
    "one number": (lambda m, h: h * m.one, set()),
    "of units along another axis": (lambda m, h: h.transpose(1, 2) * m.units, {("units", 0)}),
    "fewer axes than the units": (lambda m, h: h[:, None] * m.shift, {("shift", 2)}),
    "activation": (lambda m, h: F.prelu(h.transpose(1, 2), m.gain), {("gain", 0)}),
    "layer norm": (lambda m, h: F.layer_norm(h, (4,), m.gain, m.columns), {("gain", 0), ("columns", 0)}),
    "two at once": (lambda m, h: torch.addcmul(m.gain, h, m.columns), {("gain", 0), ("columns", 0)}),
    "written into a buffer": (lambda m, h: m.kept.copy_(h[:, 0]), {("kept", 1)}),
}


@pytest.mark.parametrize(("use", "axes"), FOLLOWS.values(), ids=FOLLOWS)
def test_parameters_follow_the_units_that_they_meet(
    use: Callable[[Any, Tensor], Tensor], axes: set[tuple[str, int]]
) -> None:
    bench, model, a, h = bench_of()
    out = bench.run(use, model, h)
    assert set(bench.recording.axes) == axes
    for name, axis in axes:
        assert bench.along(name, axis) == a.tolist()
        assert bench.recording.roles[name, axis] == {"follows"}
    if not bench.tracer.is_parameter(out):
        held = bench.found(out)
        assert held is not None
        assert torch.tensor(held).unique().tolist() == a.tolist()
    assert not bench.pins


def test_a_weight_in_no_order_pins_what_it_meets() -> None:
    bench, model, a, h = bench_of()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    bench.run(lambda h: h + model.table.flatten()[order].view(6, 4), h)
    reason = "combined with a weight that is computed in a way that was not understood"
    assert bench.pins == {reason: set(a.tolist())}


def test_states_of_several_layers_one_above_the_other() -> None:
    """A learned state of all layers: its first axis is that of the layers, the last one of their units."""
    model = Parameters()
    bench = Bench(model)
    layers = [bench.layer(f"l{k}", 4) for k in range(6)]
    bench.run(lambda h: h + model.table, bench.holding(torch.stack(layers)))
    assert set(bench.recording.axes) == {("table", 1)}
    assert all(bench.roots(each).tolist() == layers[0].tolist() for each in layers)


def test_constants_as_wide_as_the_units_are_suspicious() -> None:
    for use, suspicious in (
        (lambda h: h * torch.ones(4), True),
        (lambda h: h * torch.ones(6, 4), True),
        (lambda h: torch.ones(2, 1, 4) + h, True),
        (lambda h: h * torch.ones(6, 1), False),
        (lambda h: h * torch.ones(1), False),
        (lambda h: h * 2, False),
        (lambda h: h + torch.ones(1, 1, 1, 1), False),
    ):
        bench, _, a, h = bench_of()
        bench.run(use, h)
        assert [labels.tolist() for labels, _ in bench.recording.suspects] == [a.tolist()] * suspicious


def test_an_operand_with_more_axes_than_the_result_counts_for_nothing() -> None:
    bench, _, a, h = bench_of()
    found = bench.run(lambda h: torch.isin(h[0, 0], torch.ones(3, 4, dtype=h.dtype)), h)
    assert bench.found(found) == a.tolist()


def test_data_keep_their_origin_through_arithmetic() -> None:
    """What came from outside keeps its name beside weights and numbers; of two the one that is not repeated."""
    bench, model, _, _ = bench_of()
    x, mask = torch.randn(2, 6, 4).double(), torch.randn(2, 1, 1).double()
    for name, tensor in (("x", x), ("mask", mask)):
        bench.tracer.memory.set(tensor, bench.tracer.origins.add((name,), tensor, held=False))
    origin = bench.tracer.origin(x)
    assert origin is not None
    for use in (
        lambda x, m: x * 2,
        lambda x, m: x * m,
        lambda x, m: x.clone().zero_(),
        lambda x, m: m + x,
        lambda x, m: torch.where(m > 0, x, x * 0),
        lambda x, m: F.layer_norm(x, (4,)),
        lambda x, m: x + torch.ones(4),
    ):
        found = bench.tracer.origin(bench.run(use, x, mask))
        assert found is not None
        assert torch.equal(found, origin)
    for use in (lambda x, m: x.sum(1), lambda x, m: F.linear(x, model.w)):
        assert bench.tracer.origin(bench.run(use, x, mask)) is None


def test_weights_stay_weights_unless_data_vary_along_them() -> None:
    for use, weight in (
        (lambda m: m.w * 2, True),
        (lambda m: m.two * 2, True),
        (lambda m: m.w * m.rows, True),
        (lambda m: m.w * torch.zeros_like(m.w).bernoulli_(), True),
        (lambda m: m.w * torch.full((3, 1), 2.0).double(), True),
        (lambda m: m.w.exp(), True),
    ):
        bench, model, _, _ = bench_of()
        assert bench.tracer.is_weight(bench.run(use, model)) == weight
    bench, model, _, _ = bench_of()
    data = torch.randn(3, 4).double()
    assert not bench.tracer.is_weight(bench.run(lambda d: model.w * d, data))
    assert not bench.tracer.is_weight(bench.run(lambda d: model.w * d, data[:1]))
    assert not bench.tracer.is_weight(bench.run(lambda d: model.kept * d, data[:2, :1]))
    assert bench.tracer.is_weight(bench.run(lambda d: model.w[None] * d, data[:, :1, None]))


SCALED: dict[str, tuple[Callable[[Any], Tensor], set[tuple[str, int]], bool]] = {
    # Weights made of weights: which axes are those of `w`, and whether zeros in it are zeros of what is made.
    "doubled": (lambda m: m.w * 2, set(), True),
    "rows scaled": (lambda m: m.w * m.rows, {("rows", 0)}, True),
    "columns scaled": (lambda m: m.columns * m.w, {("columns", 0)}, True),
    "columns divided": (lambda m: m.w / m.columns, {("columns", 0)}, True),
    "root": (lambda m: m.w.sqrt(), set(), True),
    "exponential": (lambda m: m.w.exp(), set(), False),
    "one more": (lambda m: m.w + 1, set(), False),
    "a learned number more": (lambda m: m.w + m.one, set(), False),
    "whole numbers": (lambda m: m.w // 2, set(), True),
}


@pytest.mark.parametrize(("make", "axes", "plain"), SCALED.values(), ids=SCALED)
def test_weights_that_are_computed(make: Callable[[Any], Tensor], axes: set[tuple[str, int]], plain: bool) -> None:
    bench, model, a, h = bench_of()
    bench.run(lambda h: F.linear(h, make(model)), h)
    assert bench.along("w", 1) == a.tolist()
    reason = "read by a weight that is computed from others in a way that does not keep zeros"
    assert bench.pins == ({} if plain else {reason: set(a.tolist())})
    for name, axis in axes:
        dim = 0 if name == "rows" else 1
        assert bench.along(name, axis) == bench.along("w", dim)


def test_a_weight_that_numbers_are_divided_by_does_not_keep_zeros() -> None:
    bench, model, a, h = bench_of()
    bench.run(lambda h: F.linear(h, torch.floor_divide(12, model.whole).double()), h)
    assert bench.along("whole", 1) == a.tolist()
    assert list(bench.pins.values()) == [set(a.tolist())]


def test_a_number_from_weights_is_no_weight() -> None:
    bench, model, _, _ = bench_of()
    assert not bench.tracer.is_weight(bench.run(lambda: model.one * 2))


def test_new_tensors_like_units_have_a_place_for_each() -> None:
    for use in (
        torch.zeros_like,
        torch.rand_like,
        lambda h: h.clone().zero_(),
        lambda h: h.clone().uniform_(),
        lambda h: torch.full_like(h, 2),
        lambda h: h.index_fill(1, torch.tensor([0]), 2.0),
    ):
        bench, _, a, h = bench_of()
        assert bench.found(bench.run(use, h)) == a.expand(2, 6, 4).tolist()
    for make in (lambda h: h.new_zeros(4), lambda h: torch.ones(2, 6, 4), lambda h: torch.arange(4)):
        assert bench.found(bench.run(make, h)) is None


def test_what_is_written_over_units_takes_their_place() -> None:
    bench, _, a, h = bench_of()
    b = bench.layer("b", 4)
    other = bench.holding(b, 2, 6, 4)
    assert bench.found(bench.run(lambda h, o: h.clone().copy_(o), h, other)) == b.expand(2, 6, 4).tolist()
    assert bench.found(bench.run(lambda h, o: h.clone().copy_(o[:, :1]), h, other)) == b.expand(2, 6, 4).tolist()
    assert bench.found(bench.run(lambda h: h.clone().copy_(torch.ones(4)), h)) is None
    assert bench.apart(a, b)


def test_an_operation_without_a_rule_pins() -> None:
    bench, _, a, h = bench_of()
    bench.run(lambda h: torch.linalg.svd(h[0]), h)
    bench.run(lambda h: float(h[0, 0, 1]), h)
    assert bench.pins == {
        "'_linalg_svd' is not an operation that reprune can follow": set(a.tolist()),
        "some of its units are taken by their position": set(a.tolist()),
        "the model's code takes a value of its units out of PyTorch (item(), int(), float(), an index)": {int(a[1])},
    }


def test_outer_products_of_widths() -> None:
    """An element has one label: units of a layer go before widths, more of them before fewer."""
    bench = Bench(widths=ALL)
    a = bench.layer("a", 2)
    widths = {}
    for name, count in (("three", 3), ("five", 5)):
        widths[name] = torch.from_numpy(bench.recording.couplings.new(count))
        bench.tracer.widths.begin("linear", name, widths[name].numpy())
    three, five = widths["three"], widths["five"]
    for first, second, stays, goes in ((a, five, a, five), (five, a, a, five), (three, five, five, three)):
        bench.recording.pins.clear()
        column, row = bench.holding(first.view(-1, 1), 7, len(first), 1), bench.holding(second, 7, 1, len(second))
        shape = (7, len(first), len(second))
        expected = (stays.view(-1, 1) if stays is first else stays).expand(shape)
        assert bench.found(bench.run(torch.mul, column, row)) == expected.tolist()
        assert bench.pins == {"an outer product of two sets of units": set(goes.tolist())}
    bench.recording.pins.clear()
    assert bench.apart(a, three, five)
    same = torch.from_numpy(bench.recording.couplings.new(5))
    bench.run(torch.mul, bench.holding(same, 7, 5), bench.holding(five, 7, 5))
    assert bench.roots(same).tolist() == five.tolist()
    assert not bench.pins


def test_arguments_by_position_or_name() -> None:
    op = Op(Bench().tracer, "sum", torch.ops.aten.sum.dim_IntList, [1, 2], {"keepdim": True}, torch.ones(2))
    assert (op.arg(0), op.arg(1, "dim"), op.arg(2, "keepdim"), op.arg(3, "dtype")) == (1, 2, True, None)
    assert (op.arg(2, "other", 5), op.arg(2, "keepdim", 5)) == (5, True)
    assert not op.in_place
    for func, in_place in ((torch.ops.aten.add_.Tensor, True), (torch.ops.aten.__and__.Tensor, False)):
        assert Op(op.tracer, "", func, [], {}, None).in_place == in_place
