"""Operations along dimensions, sums where an index says, convolutions and normalisations: what is left of units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from reprune.torch.tracing.structure.widths import ALL
from tests.helpers.torch_tracing import Bench

Tensor = torch.Tensor
NEAR = torch.tensor([0, 0, 3, 5, 2, 3])


def bench_of() -> tuple[Bench, Tensor, Tensor]:
    bench = Bench()
    a = bench.layer("a", 4)
    return bench, a, bench.holding(a, 2, 6, 4)


LEFT: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...]]] = {
    # Units pass through: what is done, and the shape of the result but for its last axis, that of the units.
    "sum": (lambda h: h.sum(1), (2,)),
    "sum, keepdim": (lambda h: h.sum(-2, keepdim=True), (2, 1)),
    "sum of two": (lambda h: h.sum((0, 1)), ()),
    "sum of one number": (lambda h: h[0, 0][None].sum(0), ()),
    "nansum": (lambda h: h.nansum(0), (6,)),
    "norm": (lambda h: torch.linalg.vector_norm(h, dim=1), (2,)),
    "norm, keepdim": (lambda h: h.norm(dim=(0, 1), keepdim=True), (1, 1)),
    "mean": (lambda h: h.mean(dim=1), (2,)),
    "std": (lambda h: h.std(1, unbiased=False), (2,)),
    "var_mean": (lambda h: torch.var_mean(h, 1)[0], (2,)),
    "largest": (lambda h: h.max(1)[0], (2,)),
    "amax": (lambda h: h.amax((0, 1)), ()),
    "logsumexp": (lambda h: h.logsumexp(1), (2,)),
    "median": (lambda h: h.median(1, keepdim=True)[0], (2, 1)),
    "softmax": (lambda h: h.softmax(1), (2, 6)),
    "log_softmax": (lambda h: h.log_softmax(0), (2, 6)),
    "cumsum": (lambda h: h.cumsum(1), (2, 6)),
    "sort": (lambda h: h.sort(1)[0], (2, 6)),
    "topk": (lambda h: h.topk(3, dim=1)[0], (2, 3)),
    "kthvalue": (lambda h: h.kthvalue(2, 1)[0], (2,)),
    "argmax": (lambda h: h.argmax(1), (2,)),
    "any": (lambda h: (h > 0).any(1), (2,)),
    "fft": (lambda h: torch.fft.rfft(h, dim=1).abs(), (2, 4)),
    "inverse fft": (lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1), n=6, dim=1), (2, 6)),
    "segments": (lambda h: torch.segment_reduce(h, "sum", lengths=torch.tensor([1, 1])), (2, 6)),
    "segments of steps": (
        lambda h: torch.segment_reduce(h, "max", lengths=torch.tensor([[2, 4], [3, 3]]), axis=1), (2, 2),
    ),
    "scatter_add": (lambda h: torch.zeros_like(h).scatter_add(1, NEAR[None, :, None].expand(2, 6, 4), h), (2, 6)),
    "scatter_add into less": (
        lambda h: torch.zeros(2, 3, 4).double().scatter_add(1, (NEAR % 3)[None, :, None].expand(2, 6, 4), h), (2, 3),
    ),
    "index_add": (lambda h: torch.zeros(2, 9, 4).double().index_add(-2, NEAR, h), (2, 9)),
    "index_add to units": (lambda h: h.index_add(1, NEAR, torch.ones_like(h).cos()), (2, 6)),
    "scatter with a sum": (
        lambda h: torch.zeros_like(h).scatter(1, NEAR[None, :, None].expand(2, 6, 4), h, reduce="add"), (2, 6),
    ),
    "scatter_reduce": (
        lambda h: torch.zeros_like(h).scatter_reduce(1, NEAR[None, :, None].expand(2, 6, 4), h, "amax"), (2, 6),
    ),
    "index_put, accumulated": (
        lambda h: torch.zeros(6, 4).double().index_put((NEAR,), h[0], accumulate=True), None,
    ),
    "pooling": (lambda h: F.avg_pool1d(h.transpose(1, 2), 2).transpose(1, 2), (2, 3)),
    "pooling of two": (lambda h: F.max_pool2d(h.transpose(1, 2)[..., None], (3, 1))[..., 0].transpose(1, 2), (2, 2)),
    "upsampling": (lambda h: F.interpolate(h.transpose(1, 2), scale_factor=2).transpose(1, 2), (2, 12)),
    "draws": (lambda h: h[0].t().abs().multinomial(3).t(), (3,)),
    "solution": (lambda h: torch.linalg.solve_triangular(torch.eye(6).double(), h, upper=False), (2, 6)),
    "solution from the right": (
        lambda h: torch.linalg.solve_triangular(torch.eye(6).double(), h.mT, upper=False, left=False).mT, (2, 6),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter")
@pytest.mark.parametrize(("use", "shape"), LEFT.values(), ids=LEFT)
def test_units_pass_through_what_is_done_over_time(use: Callable[[Tensor], Any], shape: Any) -> None:
    bench, a, h = bench_of()
    out = bench.run(use, h)
    if shape is None:  # Places that nothing was put to hold no unit.
        rows = [a.tolist() if step in NEAR.tolist() else [0] * 4 for step in range(6)]
        assert bench.found(out) == rows
    else:
        assert bench.found(out) == a.expand(*shape, 4).tolist()
    assert not bench.pins
    assert not bench.tracer.summaries
    assert not bench.recording.direct
    assert bench.apart(a)


def test_a_number_of_one_unit() -> None:
    bench, a, _h = bench_of()
    one = bench.holding(a[1])
    assert bench.found(bench.run(lambda x: x.sum(), one)) == int(a[1])
    assert bench.found(bench.run(lambda x: x.softmax(0), one)) == int(a[1])


OVER: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    # What is done over units, and what becomes of them: read without a weight, summed up, or pinned.
    "sum": (lambda h: h.sum(-1), "direct"),
    "sum of all": (lambda h: h.sum(), "direct"),
    "sum over steps and units": (lambda h: h.sum((1, 2), keepdim=True), "direct"),
    "norm": (lambda h: torch.linalg.vector_norm(h, dim=-1), "direct"),
    "norm of all": (lambda h: h.norm(), "direct"),
    "how many": (lambda h: h.count_nonzero(2), "direct"),
    "mean": (lambda h: h.mean(2), "moment"),
    "mean of all": (lambda h: h.mean(), "moment"),
    "std": (lambda h: h.std(-1), "moment"),
    "std of all": (lambda h: h.std(False), "moment"),
    "largest": (lambda h: h.max(-1), "value"),
    "argmax": (lambda h: h.argmax(), "value"),
    "places": (lambda h: h.nonzero(), "value"),
    "softmax": (lambda h: h.softmax(-1), "'_softmax' runs over its units"),
    "topk": (lambda h: h.topk(2), "'topk' runs over its units"),
    "cumsum": (lambda h: h.cumsum(2), "'cumsum' runs over its units"),
    "sort": (lambda h: h.sort()[0], "'sort' runs over its units"),
    "fft": (lambda h: torch.fft.fft(h), "'_fft_r2c' runs over its units"),
    "draws": (lambda h: h[0].abs().multinomial(2), "'multinomial' runs over its units"),
    "pooling": (lambda h: F.avg_pool1d(h, 2), "'avg_pool2d' runs over its units"),
    "pooling of two": (lambda h: F.max_pool2d(h[None], 2), "'max_pool2d_with_indices' runs over its units"),
    "segments": (
        lambda h: torch.segment_reduce(h[0].t().contiguous(), "sum", lengths=torch.tensor([1, 3])),
        "'segment_reduce' puts entries together along the axis of its units",
    ),
    "scatter_add": (
        lambda h: torch.zeros_like(h).scatter_add(2, torch.zeros_like(h).long(), h),
        "'scatter_add' puts entries together along the axis of its units",
    ),
    "index_add to units": (
        lambda h: h.index_add(2, torch.tensor([0, 0]), torch.ones(2, 6, 2).double()),
        "'index_add' puts entries together along the axis of its units",
    ),
    "scatter_add of some": (
        lambda h: torch.zeros(2, 6, 9).double().scatter_add(1, NEAR[None, :, None].expand(2, 6, 4), h),
        "'scatter_add' takes only some of its units",
    ),
    "index_put of two units": (
        lambda h: torch.zeros(3).double().index_put((torch.tensor([0, 1, 1, 2]),), h[0, 0], accumulate=True),
        "entries of different units are added",
    ),
    "solution": (
        lambda h: torch.linalg.solve_triangular(torch.eye(4).double(), h.mT, upper=False),
        "'linalg_solve_triangular' runs over its units",
    ),
    "solution from the right": (
        lambda h: torch.linalg.solve_triangular(torch.eye(4).double(), h, upper=False, left=False),
        "'linalg_solve_triangular' runs over its units",
    ),
    "equation of units": (
        lambda h: torch.linalg.solve_triangular(h[:, :4], torch.ones(4, 1).double(), upper=False),
        "'linalg_solve_triangular' runs over its units",
    ),
    "inverse": (lambda h: torch.linalg.inv(h[:, :4].mT), "'linalg_inv_ex' runs over its units"),
}


@pytest.mark.parametrize(("use", "what"), OVER.values(), ids=OVER)
def test_what_is_done_over_units(use: Callable[[Tensor], Any], what: str) -> None:
    bench, a, h = bench_of()
    units = a.tolist()
    out = bench.run(use, h)
    for tensor in out if isinstance(out, tuple) else [out]:
        assert bench.found(tensor) is None
    assert [labels.tolist() for labels in bench.recording.direct] == [units] * (what == "direct")
    summaries = [found for held in bench.tracer.summaries.values() for found in held]
    assert {(tuple(found.units.tolist()), found.moment) for found in summaries} == (
        {(tuple(units), what == "moment")} if what in ("moment", "value") else set()
    )
    pinned = what not in ("direct", "moment", "value")
    reasons = {reason: held for reason, held in bench.pins.items() if "position" not in reason}
    assert reasons == ({what: set(units)} if pinned else {})
    # That the result was made of them, and why they are not told in it, is remembered.
    assert bool(bench.tracer.lost) == bool(bench.pins)


def test_layers_that_are_summed_are_coupled() -> None:
    for use in (lambda x: x.sum(1), lambda x: x.amax(-2), lambda x: x.softmax(1)[:, 0]):
        bench, a, _ = bench_of()
        b = bench.layer("b", 4)
        rows = torch.stack([a, b, torch.zeros(4).long()])
        out = bench.run(use, bench.holding(rows, 2, 3, 4))
        assert bench.roots(b).tolist() == a.tolist()
        assert bench.found(out) == a.expand(2, 4).tolist()
        assert bench.apart(a)
        assert not bench.recording.direct
    bench, a, _ = bench_of()
    beside = bench.holding(torch.stack([a, torch.zeros(4).long()]), 2, 2, 4)
    assert bench.found(bench.run(lambda x: x.sum(1), beside)) == a.expand(2, 4).tolist()
    # Not units of one layer with each other.
    bench, a, _ = bench_of()
    bench.run(lambda x: x.sum(1), bench.holding(torch.stack([a, a.roll(1)]), 2, 2, 4))
    assert bench.apart(a)
    assert [labels.tolist() for labels in bench.recording.direct] == [a.tolist()]


def test_accumulating_onto_units_couples_them() -> None:
    index = NEAR[None, :, None].expand(2, 6, 4)
    for use in (
        lambda x, y: x.scatter_add(1, index, y),
        lambda x, y: x.index_add(1, NEAR, y),
        lambda x, y: x[0].index_put((NEAR,), y[0], accumulate=True),
    ):
        bench, a, h = bench_of()
        b = bench.layer("b", 4)
        out = bench.run(use, h, bench.holding(b, 2, 6, 4))
        assert bench.roots(b).tolist() == a.tolist()
        assert bench.found(out) == a.expand(out.shape).tolist()
    bench, a, h = bench_of()
    kept = bench.run(lambda x: x[0].index_put((NEAR,), torch.ones(6, 4).double(), accumulate=True), h)
    assert bench.found(kept) == a.expand(6, 4).tolist()
    number = bench.run(lambda x: x.scatter(1, index, 1.0, reduce="add"), h)
    assert bench.found(number) == a.expand(2, 6, 4).tolist()


def test_segments_of_heads() -> None:
    bench, a, _ = bench_of()
    x = bench.holding(a.view(4, 1, 1), 4, 6, 3)
    lengths = torch.tensor([[2, 4]] * 4)
    out = bench.run(lambda x: torch.segment_reduce(x, "max", lengths=lengths, axis=1), x)
    assert bench.found(out) == a.view(4, 1, 1).expand(4, 2, 3).tolist()


def test_equations_matrix_by_matrix() -> None:
    """Heads lie along the matrices, and along what is solved for."""
    bench = Bench()
    a, b = bench.layer("a", 3), bench.layer("b", 3)
    matrices, given = bench.holding(a.view(3, 1, 1), 2, 3, 5, 5), bench.holding(b.view(3, 1, 1), 2, 3, 5, 4)
    out = bench.run(lambda x, y: torch.linalg.solve_triangular(x, y, upper=True), matrices, given)
    assert bench.found(out) == a.view(3, 1, 1).expand(2, 3, 5, 4).tolist()
    assert bench.roots(b).tolist() == a.tolist()
    assert bench.found(bench.run(torch.linalg.matrix_exp, matrices)) == a.view(3, 1, 1).expand(2, 3, 5, 5).tolist()
    assert bench.run(torch.linalg.inv, torch.eye(3)).shape == (3, 3)
    assert not bench.pins
    model = nn.Linear(5, 5).double()
    bench = Bench(model)
    a = bench.layer("a", 4)
    bench.run(lambda h: torch.linalg.solve_triangular(model.weight, h, upper=True), bench.holding(a, 5, 4))
    assert bench.pins == {"'linalg_solve_triangular' of a weight": set(a.tolist())}


def test_widths_within_a_window_go_together() -> None:
    """Pooling takes the place of joining: widths along the windows lose all of them or none."""
    bench = Bench(widths=ALL)
    labels = torch.from_numpy(bench.recording.couplings.new(4))
    bench.tracer.widths.begin("linear", "w", labels.numpy())
    out = bench.run(lambda h: F.avg_pool1d(h, 2), bench.holding(labels, 2, 6, 4))
    assert len(set(bench.roots(labels).tolist())) == 1
    assert bench.found(out) == labels[:1].expand(2, 6, 2).tolist()
    assert not bench.pins


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.batch, self.group, self.each = nn.BatchNorm1d(4), nn.GroupNorm(1, 4), nn.GroupNorm(4, 4)
        self.halves, self.layer = nn.GroupNorm(2, 4), nn.LayerNorm((6, 4))
        self.eval().double()


def test_normalisations() -> None:
    for use, approximate, pins, follows in (
        (lambda m, h: m.batch(h.mT), False, False, {(n, 0) for n in ("weight", "bias", "running_mean", "running_var")}),
        (lambda m, h: m.each(h.mT), False, False, {("weight", 0), ("bias", 0)}),
        (lambda m, h: m.group(h.mT), True, False, {("weight", 0), ("bias", 0)}),
        (lambda m, h: m.halves(h.mT), False, True, {("weight", 0), ("bias", 0)}),
        (lambda m, h: m.layer(h), True, False, {("weight", 1), ("bias", 1)}),
        (lambda m, h: F.layer_norm(h.mT, (6,)), False, False, set()),
        (lambda m, h: F.layer_norm(h[..., None], (4, 1)), True, False, set()),
        (lambda m, h: F.layer_norm(h[..., None], (1,)), False, False, set()),
    ):  # fmt: skip
        model = Norms()
        bench = Bench(model)
        a = bench.layer("a", 4)
        out = bench.run(lambda h, use=use, model=model: use(model, h), bench.holding(a, 2, 6, 4))
        found = bench.tracer.units(out)
        assert found is not None
        assert found.unique().tolist() == a.tolist()
        assert found.shape == out.shape
        assert [labels.tolist() for labels, _ in bench.recording.approximate] == [a.tolist()] * approximate
        assert bench.pins == ({"group_norm cuts its units into 2 groups": set(a.tolist())} if pins else {})
        assert {(name.split(".")[-1], axis) for name, axis in bench.recording.axes} == follows
        for name, axis in bench.recording.axes:
            assert bench.along(name, axis) == a.tolist()
            assert bench.recording.roles[name, axis] == {"follows"}
    assert Bench(model).run(lambda: (model.batch(torch.ones(2, 4, 3).double()), model.layer(torch.ones(6, 4).double())))


def test_groups_of_widths_go_together() -> None:
    bench = Bench(Norms(), widths=ALL)
    labels = torch.from_numpy(bench.recording.couplings.new(4))
    bench.tracer.widths.begin("linear", "w", labels.numpy())
    norm = nn.GroupNorm(2, 4).double()
    out = bench.run(norm, bench.holding(labels.view(4, 1), 2, 4, 6))
    first, second = int(labels[0]), int(labels[2])
    assert bench.roots(labels).tolist() == [first, first, second, second]
    assert bench.found(out) == labels[[0, 0, 2, 2]].view(4, 1).expand(2, 4, 6).tolist()
    assert not bench.recording.approximate


def test_a_weight_that_is_normalised_by_its_length() -> None:
    """`g * v / |v|` over rows: fewer columns make other lengths, and rows go with theirs."""
    for dim in (0, 1):
        model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3, bias=False).double(), dim=dim)
        bench = Bench(model)
        a = bench.layer("a", 4)
        out = bench.run(model, bench.holding(a, 2, 4))
        length, direction = "parametrizations.weight.original0", "parametrizations.weight.original1"
        assert bench.along(direction, 1) == a.tolist()
        rows = bench.along(direction, 0)
        assert bench.found(out) == [rows, rows]
        assert bench.along(length, dim) == (rows if dim == 0 else a.tolist())
        ((labels, site),) = bench.recording.approximate
        assert bench.roots(labels).tolist() == (a.tolist() if dim == 0 else rows)
        assert site.operation == "weight_norm"
