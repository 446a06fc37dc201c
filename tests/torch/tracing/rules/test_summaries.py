"""What becomes of values made of all units of a layer, of values that units are lost in, and of constant matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from reprune.torch.tracing.labels import storage_id
from reprune.torch.tracing.rules.table import class_of, is_view, rule_of
from tests.helpers.torch_tracing import Bench

Tensor = torch.Tensor


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.learned = (nn.Parameter(torch.randn(n, m).double()) for n, m in ((3, 4), (6, 6)))
        self.register_buffer("near", torch.randn(6, 6).double())


def bench_of() -> tuple[Bench, Any, Tensor, Tensor]:
    model = Model()
    bench = Bench(model)
    a = bench.layer("a", 4)
    return bench, model, a, bench.holding(a, 2, 6, 4)


def mean(h: Tensor) -> Tensor:
    return h.mean(-1, keepdim=True)


USES: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "centred": (lambda m, h: h - mean(h), "approximate"),
    "the other way round": (lambda m, h: mean(h) - h, "approximate"),
    "rsub": (lambda m, h: torch.rsub(mean(h), h), "approximate"),
    "added": (lambda m, h: h + mean(h), "approximate"),
    "divided by a deviation": (lambda m, h: h / h.std(-1, keepdim=True), "approximate"),
    "divided by a root mean square": (lambda m, h: h / (mean(h * h) + 1e-6).sqrt(), "approximate"),
    "multiplied with its reciprocal": (lambda m, h: h * (mean(h.square()) + 1e-6).rsqrt(), "approximate"),
    "multiplied with a power": (lambda m, h: h * mean(h.square()).pow(-0.5), "approximate"),
    "multiplied with a deviation's reciprocal": (lambda m, h: h * h.std(-1, keepdim=True).reciprocal(), "approximate"),
    "viewed on the way": (lambda m, h: h - h.mean(-1).view(2, 6, 1), "approximate"),
    "repeated on the way": (lambda m, h: h - mean(h).repeat(1, 1, 4), "approximate"),
    "averaged over time": (lambda m, h: h - mean(h).mean(1, keepdim=True), "approximate"),
    "both at once": (lambda m, h: (h - mean(h)) / h.std(-1, keepdim=True), "approximate"),
    "addcmul": (lambda m, h: torch.addcmul(mean(h), h, h), "approximate"),
    "multiplied": (lambda m, h: h * mean(h), "pinned"),
    "a gate": (lambda m, h: h - mean(h).sigmoid(), "pinned"),
    "the largest is no moment": (lambda m, h: h - h.amax(-1, keepdim=True), "pinned"),
    "read by a weight": (lambda m, h: F.linear(mean(h).expand(2, 6, 4), m.w), "pinned"),
    "a number": (lambda m, h: float(h.mean()), "pinned"),
    "a bool of a number": (lambda m, h: bool(h.mean()), "pinned"),
    "a question": (lambda m, h: bool(h.mean() > 0), "asked"),
    "equal": (lambda m, h: torch.equal(mean(h), mean(h) + 1), "asked"),
    "zeros like it": (lambda m, h: h * torch.zeros_like(mean(h)), ""),
    "nobody uses it": (lambda m, h: (mean(h) + 1).sigmoid(), ""),
}  # fmt: skip


@pytest.mark.parametrize(("use", "what"), USES.values(), ids=USES)
def test_what_becomes_of_a_summary(use: Callable[[Any, Tensor], Any], what: str) -> None:
    bench, model, a, h = bench_of()
    out = bench.run(use, model, h)
    units = a.tolist()
    assert {tuple(labels.tolist()) for labels, _ in bench.recording.approximate} == (
        {tuple(units)} if what == "approximate" else set()
    )
    reasons = [reason for reason in bench.pins if "the result is used: with fewer units it is another one" in reason]
    assert len(bench.pins) == len(reasons) == (what == "pinned")
    assert all(held == set(units) for held in bench.pins.values())
    direct = {tuple(labels.tolist()) for labels in bench.recording.direct}
    assert direct == ({tuple(units)} if what == "asked" else set())
    if what == "approximate":
        assert bench.found(out) == a.expand(2, 6, 4).tolist()


def test_a_summary_of_one_layer_normalises_no_other() -> None:
    bench, _, a, h = bench_of()
    b = bench.layer("b", 4)
    bench.run(lambda h, o: o - mean(h), h, bench.holding(b, 2, 6, 4))
    assert not bench.recording.approximate
    assert list(bench.pins.values()) == [set(a.tolist())]
    # Of both, it normalises what holds both.
    bench, _, a, h = bench_of()
    b = bench.layer("b", 4)
    both = bench.run(lambda h, o: torch.cat([h, o], -1), h, bench.holding(b, 2, 6, 4))
    bench.run(lambda h: h - mean(h), both)
    assert [labels.tolist() for labels, _ in bench.recording.approximate] == [[*a.tolist(), *b.tolist()]]
    assert not bench.pins


def test_summaries_in_place() -> None:
    """What a summary is written into holds it; nothing is left of what is not asked for."""
    bench, _, a, h = bench_of()
    target = torch.zeros(2, 6, 1).double()
    bench.run(lambda h: target.copy_(mean(h)), h)
    bench.run(lambda h: h * target.sigmoid(), h)
    assert list(bench.pins.values()) == [set(a.tolist())]


def test_units_that_meet_what_others_were_lost_in() -> None:
    bench, _, a, h = bench_of()
    b = bench.layer("b", 4)
    scores = bench.run(lambda h: h.softmax(-1), h)
    ((first, reason),) = bench.tracer.lost.values()
    assert (first.operation, reason) == ("_softmax", "'_softmax' runs over its units")
    on_the_way = bench.run(lambda s: (s * 2).sin()[:1].expand(2, 6, 4), scores)
    other = bench.holding(b, 2, 6, 4)
    assert not bench.recording.losses
    bench.run(lambda o: o * 2, other)
    assert not bench.recording.losses
    out = bench.run(lambda s, o: s * o, on_the_way, other)
    ((units, site, loss),) = bench.recording.losses
    assert units.tolist() == b.tolist()
    assert (site.operation, loss) == ("mul", (first, reason))
    # The units go on: what comes out is theirs.
    assert bench.found(out) == b.expand(2, 6, 4).tolist()
    bench.run(lambda o: o * 2, out)
    assert len(bench.recording.losses) == 1
    assert bench.apart(a, b)


def test_what_is_known_of_a_tensor_is_not_taken_for_that_of_another() -> None:
    """Its memory is held on to, or a tensor made later could get it."""
    for use, known in ((lambda h: h.softmax(-1).sum(), "lost"), (lambda h: h.mean(), "summaries")):
        bench, _, _, h = bench_of()
        bench.run(use, h)
        others = [torch.zeros(shape).double() for shape in ((), (2, 6, 4)) for _ in range(50)]
        assert getattr(bench.tracer, known)
        assert not getattr(bench.tracer, known).keys() & {storage_id(other) for other in others}


def test_constant_matrices_make_positions() -> None:
    """Rows of an adjacency are nodes, not units: they go where a weight reads features."""
    bench, model, a, h = bench_of()
    out = bench.run(lambda h: model.near @ h, h)
    assert bench.found(out) == a.expand(2, 6, 4).tolist()
    assert not bench.recording.positions
    spread = bench.run(lambda x: model.near @ x, torch.randn(2, 6, 4).double())
    rows = bench.along("near", 0)
    assert bench.found(spread) == torch.tensor(rows)[:, None].expand(2, 6, 4).tolist()
    # No weight: they pass through.
    again = bench.run(lambda s: s @ torch.ones(4, 3).double(), spread)
    assert bench.found(again) == torch.tensor(rows)[:, None].expand(2, 6, 3).tolist()
    assert not bench.recording.positions
    # What contracts nodes reads them.
    bench.run(lambda s: model.learned @ s, spread)
    assert bench.along("learned", 1) == rows
    made = bench.run(lambda s: F.linear(s, model.w), spread)
    assert bench.found(made) == torch.tensor(bench.along("w", 0)).expand(2, 6, 3).tolist()
    assert {tuple(labels.tolist()) for labels in bench.recording.positions} == {tuple(rows)}
    assert not bench.pins
    assert bench.apart(a)


def test_a_learned_matrix_over_steps_makes_positions() -> None:
    bench, model, a, h = bench_of()
    out = bench.run(lambda h: model.learned @ h, h)
    assert bench.found(out) == a.expand(2, 6, 4).tolist()
    assert [labels.tolist() for labels in bench.recording.positions] == [bench.along("learned", 0)]
    assert not bench.pins


def test_constant_rows_beside_units() -> None:
    """A number for each node, times units: the nodes are positions."""
    bench, model, a, h = bench_of()
    weights = bench.run(lambda x: model.near @ x, torch.randn(2, 6, 1).double())
    rows = bench.along("near", 0)
    for use in (torch.mul, lambda x, y: torch.mul(y, x)):
        bench.recording.positions.clear()
        assert bench.found(bench.run(use, weights, h[:, :1].expand(2, 6, 4))) == a.expand(2, 6, 4).tolist()
        assert [labels.tolist() for labels in bench.recording.positions] == [rows]
    assert bench.apart(a)


def test_classes_of_operations() -> None:
    for name, kind in {"cat": "moves", "scatter_add": "accumulates", "zeros_like": "like", "zeros": "nothing",
                       "sum": "along dimensions", "mm": "product", "native_layer_norm": "normalisation",
                       "tanh": "pointwise", "clone": "pointwise", "sigmoid_": "pointwise", "linalg_svd": None,
                       "no such operation": None}.items():  # fmt: skip
        assert class_of(name) == kind
        assert (rule_of(name) is None) == (kind is None)
    for name, view in {"view": True, "transpose": True, "squeeze": True, "unbind": True, "cat": False, "add": False,
                       "add_": False, "relu_": False, "no such operation": False}.items():  # fmt: skip
        assert is_view(name) == view


def test_sparse_tensors_pin() -> None:
    bench, _, a, h = bench_of()
    bench.run(lambda h: h[0].to_sparse(), h)
    assert bench.pins == {"made a sparse or nested tensor, which reprune cannot follow": set(a.tolist())}
