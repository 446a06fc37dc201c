"""Contractions: what is coupled along the summed axis, what comes out, who reads, and how much is multiplied."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from reprune.torch.tracing.labels import NONE
from reprune.torch.tracing.structure.widths import ALL
from tests.helpers.torch_tracing import Bench, size

Tensor = torch.Tensor


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shapes = {
            "w": (3, 4), "b": (3,), "t": (4, 3), "m": (2, 4, 3), "bm": (2, 1, 3), "e": (3, 4, 5), "eb": (3,),
            "long": (9,), "wide": (5, 7), "start": (1, 3), "heads": (4, 3, 5), "six": (6, 4), "over": (3, 6),
            "added": (6, 3),
        }  # fmt: skip
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, dtype=torch.float64)))
        self.register_buffer("near", torch.randn(6, 6, dtype=torch.float64))


def bench_of() -> tuple[Bench, Any, Tensor, Tensor]:
    """A bench, its weights, four units and six steps of two sequences of them (2, 6, 4)."""
    model = Weights()
    bench = Bench(model)
    a = bench.layer("a", 4)
    return bench, model, a, bench.holding(a, 2, 6, 4)


def multiplied(bench: Bench) -> list[tuple[int, list[list[int]]]]:
    """Multiplications of every product, and the classes on its axes that hold any."""
    return [
        (
            product.rows * math.prod(map(len, product.axes)),
            [bench.roots(axis).tolist() for axis in product.axes if axis.any()],
        )
        for product in bench.recording.products
    ]


READS: dict[str, tuple[Callable[[Any, Tensor], Tensor], str, int, str | None, int]] = {
    # How a weight reads four units: the weight, its axis that reads, the bias, and how many vectors are multiplied.
    "linear": (lambda m, h: F.linear(h, m.w, m.b), "w", 1, "b", 12),
    "linear without bias": (lambda m, h: F.linear(h, m.w), "w", 1, None, 12),
    "linear of steps": (lambda m, h: F.linear(h.transpose(0, 1), m.w, m.b), "w", 1, "b", 12),
    "product and bias": (lambda m, h: h @ m.t + m.b, "t", 0, "b", 12),
    "bias and product": (lambda m, h: m.b + h @ m.t, "t", 0, "b", 12),
    "product, scaled bias": (lambda m, h: torch.add(h @ m.t, m.b, alpha=2), "t", 0, None, 12),
    "product and a number": (lambda m, h: h @ m.t + 1, "t", 0, None, 12),
    "product and a constant": (lambda m, h: h @ m.t + torch.ones(3), "t", 0, None, 12),
    "addmm": (lambda m, h: torch.addmm(m.b, h[0], m.t), "t", 0, "b", 6),
    "from the left": (lambda m, h: m.w @ h.transpose(1, 2), "w", 1, None, 12),
    "of one step": (lambda m, h: m.w.mv(h[0, 0]), "w", 1, None, 1),
    "of one step, with a bias": (lambda m, h: torch.addmv(m.b, m.w, h[0, 0]), "w", 1, None, 1),
    "einsum": (lambda m, h: torch.einsum("bti,oi->bto", h, m.w), "w", 1, None, 12),
    "a matrix each": (lambda m, h: torch.bmm(h, m.m), "m", 1, None, 12),
    "a matrix and a bias each": (lambda m, h: torch.baddbmm(m.bm, h, m.m), "m", 1, "bm", 12),
}  # fmt: skip


@pytest.mark.parametrize(("use", "weight", "axis", "bias", "vectors"), READS.values(), ids=READS)
def test_a_weight_reads_units(
    use: Callable[[Any, Tensor], Tensor], weight: str, axis: int, bias: str | None, vectors: int
) -> None:
    bench, model, a, h = bench_of()
    out = bench.run(use, model, h)
    assert bench.along(weight, axis) == a.tolist()
    assert bench.recording.roles[weight, axis] == {"reads"}
    assert bench.recording.biases[weight, axis] == bias
    # What comes out are the weight's rows, which are nobody's units yet, and the bias goes with them.
    own = [dim for dim in range(getattr(model, weight).ndim) if dim != axis][-1]
    rows = bench.along(weight, own)
    assert len(set(rows)) == 3
    assert not set(rows) & {NONE, *a.tolist()}
    along = torch.tensor(rows)
    assert bench.found(out) == (along[:, None] if out.size(-1) != 3 else along).expand(out.shape).tolist()
    if bias is not None:
        last = getattr(model, bias).ndim - 1
        assert bench.along(bias, last) == rows
        assert ("own" if last == 0 else "follows") in bench.recording.roles[bias, last]
    assert multiplied(bench) == [(vectors * 3 * 4, [rows, a.tolist()])]
    assert bench.recording.maps == [((weight, axis), (weight, own))]
    assert bench.recording.uses[weight] == 1
    assert bench.recording.rows[weight] == vectors
    assert not bench.pins
    assert not bench.recording.direct
    assert bench.apart(a)


def product(m: Any, h: Tensor) -> Tensor:
    return h @ m.t


BIASES: dict[str, tuple[Callable[[Any, Tensor], Any], str | None]] = {
    "the same, twice": (lambda m, h: (F.linear(h, m.w, m.b), F.linear(h * 2, m.w, m.b)), "b"),
    "two": (lambda m, h: (F.linear(h, m.w, m.b), F.linear(h, m.w, m.eb)), None),
    "only once": (lambda m, h: (F.linear(h, m.w, m.b), F.linear(h, m.w)), None),
    "only at last": (lambda m, h: (F.linear(h, m.w), F.linear(h, m.w, m.b)), None),
    "the same, added twice": (lambda m, h: (product(m, h) + m.b, product(m, h) + m.b), "b"),
    "the same, added later": (lambda m, h: [made + m.b for made in (product(m, h), product(m, h))], "b"),
    "added and given": (lambda m, h: (product(m, h) + m.b, torch.addmm(m.b, h[0], m.t)), "b"),
    "given and added": (lambda m, h: (torch.addmm(m.b, h[0], m.t), product(m, h) + m.b), "b"),
    "two, added": (lambda m, h: (product(m, h) + m.b, product(m, h) + m.eb), None),
    "added once": (lambda m, h: (product(m, h) + m.b, product(m, h)), None),
    "added twice to one": (lambda m, h: product(m, h) + m.b + m.eb, "b"),
    "one that is too short": (lambda m, h: product(m, h) + m.b[:1], None),
    "a part of a longer one": (lambda m, h: F.linear(h, m.w[:2], m.b[:2]), "b"),
    "a longer one for a part": (lambda m, h: F.linear(h, m.w, m.long[:3]), None),
    "a longer one, added": (lambda m, h: product(m, h) + m.long[:3], None),
}


@pytest.mark.parametrize(("use", "bias"), BIASES.values(), ids=BIASES)
def test_which_bias_takes_up_what_is_folded(use: Callable[[Any, Tensor], Any], bias: str | None) -> None:
    """One that is added wherever the weight is used."""
    bench, model, _, h = bench_of()
    bench.run(use, model, h)
    (found,) = {name for (tensor, _), name in bench.recording.biases.items() if tensor in ("w", "t")}
    assert found == bias
    if use is BIASES["the same, twice"][0]:
        assert (bench.recording.uses, bench.recording.rows) == ({"w": 2}, {"w": 24})


def test_what_is_counted_twice_is_no_second_use() -> None:
    """A pass on the states that the first one returned starts anew; one that is not counted leaves all as it was."""
    bench, model, _, h = bench_of()
    bench.run(lambda m, h: product(m, h) + m.b, model, h)
    with bench.recording.not_counted():
        bench.run(lambda m, h: product(m, h) + m.b, model, h)
    assert (bench.recording.uses, bench.recording.rows, len(bench.recording.products)) == ({"t": 1}, {"t": 12}, 1)
    bench.run(lambda m, h: product(m, h) + m.b, model, h)
    bench.recording.begin_feedback()
    assert not bench.recording.products
    bench.run(lambda m, h: product(m, h) + m.b, model, h)
    assert (bench.recording.uses, bench.recording.biases) == ({"t": 1}, {("t", 0): "b"})


def test_products_of_units() -> None:
    """Units that are multiplied with each other, or with constants, are read without a weight."""
    bench, _, a, h = bench_of()
    scores = bench.run(lambda h: h @ h.transpose(1, 2), h)
    assert bench.found(scores) is None
    assert multiplied(bench) == [(2 * 6 * 6 * 4, [a.tolist()])]
    assert [labels.tolist() for labels in bench.recording.direct] == [a.tolist()] * 2
    assert not bench.recording.suspects
    context = bench.run(lambda s, h: s.softmax(-1) @ h, scores, h)
    assert bench.found(context) == a.expand(2, 6, 4).tolist()
    assert multiplied(bench)[1:] == [(2 * 6 * 6 * 4, [a.tolist()])]
    turned = bench.run(lambda s, h: h.transpose(1, 2) @ s, scores, h)
    assert bench.found(turned) == a[:, None].expand(2, 4, 6).tolist()
    assert len(bench.recording.direct) == 2
    summed = bench.run(lambda h: h @ torch.ones(4, 3, dtype=h.dtype), h)
    assert bench.found(summed) is None
    assert [labels.tolist() for labels in bench.recording.direct[2:]] == [a.tolist()]
    assert [labels.tolist() for labels, _ in bench.recording.suspects] == [a.tolist()]
    b = bench.layer("b", 4)
    other = bench.holding(b, 2, 6, 4)
    bench.run(lambda h, o: torch.bmm(h, o.transpose(1, 2)), h, other)
    assert bench.roots(b).tolist() == a.tolist()
    assert not bench.pins


def test_a_dot_product_multiplies_once_for_each_unit() -> None:
    bench, _, a, h = bench_of()
    bench.run(lambda h: torch.dot(h[0, 0], h[0, 1]), h)
    assert multiplied(bench) == [(4, [a.tolist()])]


def test_a_weight_whose_elements_are_in_no_order_pins_what_it_reads() -> None:
    bench, model, a, h = bench_of()
    order = torch.tensor([5, 2, 9, 0, 7, 11, 1, 3, 10, 4, 8, 6])
    bench.run(lambda h: F.linear(h, model.w.flatten()[order].view(3, 4)), h)
    assert bench.pins == {"multiplied by a weight that was computed in an unknown way": set(a.tolist())}
    assert not [axis for axis, line in bench.recording.axes.items() if set(bench.roots(line)) & set(a.tolist())]
    bench.recording.pins.clear()
    bench.run(lambda: F.linear(torch.ones(2, 4).double(), model.w.flatten()[order].view(3, 4)))
    assert not bench.pins


def test_dots_and_distances_couple_what_they_compare() -> None:
    for use, direct in (
        (lambda x, y: torch.dot(x[0, 0], y[0, 0]), 2),
        (lambda x, y: torch.vdot(x[0, 0], y[0, 0]), 2),
        (lambda x, y: torch.cdist(x, y), 2),
        (lambda x, y: torch.dist(x, y), 1),
        (lambda x, y: torch.equal(x[:, :1], y[:, :1]), 1),
        (lambda x, y: torch.allclose(x, y), 1),
        (lambda x, y: torch.einsum("bti,bsi->bts", x, y), 2),
    ):
        bench, _, a, h = bench_of()
        b = bench.layer("b", 4)
        other = bench.holding(b, 2, 6, 4)
        out = bench.run(use, h, other)
        assert not isinstance(out, Tensor) or bench.found(out) is None
        assert bench.roots(b).tolist() == a.tolist()
        found = [set(labels.tolist()) for labels in bench.recording.direct]
        assert len(found) >= direct
        assert set.union(*found) >= set(a.tolist())
        assert not bench.pins


def test_whether_tensors_of_different_shapes_are_equal_asks_for_no_unit() -> None:
    bench, _, _, h = bench_of()
    assert not bench.run(lambda h: torch.equal(h, h[:1]), h)
    assert not bench.recording.direct


def test_distances_from_learned_points() -> None:
    bench, model, a, h = bench_of()
    bench.run(lambda h: torch.cdist(h, model.w), h)
    assert bench.along("w", 1) == a.tolist()
    bench.run(lambda h: torch.cdist(model.t.t(), h[0]), h)
    assert bench.along("t", 0) == a.tolist()
    bench.run(lambda: torch.cdist(model.w, torch.ones(2, 4, dtype=model.w.dtype)))
    assert [labels.tolist() for labels in bench.recording.direct] == [a.tolist()] * 2


def test_outer_products_keep_one_side() -> None:
    reason = "an outer product of two sets of units"
    bench, model, a, _ = bench_of()
    b = bench.layer("b", 5)
    x, y = bench.holding(a.view(4, 1), 2, 4, 1), bench.holding(b, 2, 1, 5)
    out = bench.run(torch.bmm, x, y)
    assert bench.pins == {reason: {*a.tolist(), *b.tolist()}}
    assert bench.found(out) == b.expand(2, 4, 5).tolist()
    # Rows of a weight are no units: those of the layer go on.
    bench, model, a, h = bench_of()
    made = bench.run(lambda h: F.linear(h, model.w), h)
    rows = bench.along("w", 0)
    column, row = (lambda t: t[:, :1].transpose(1, 2)), (lambda t: t[:, :1])
    assert bench.found(bench.run(lambda h, m: column(h) @ row(m), h, made)) == a[:, None].expand(2, 4, 3).tolist()
    assert bench.pins == {reason: set(rows)}
    assert bench.found(bench.run(lambda h, m: column(m) @ row(h), h, made)) == a.expand(2, 3, 4).tolist()
    assert bench.pins == {reason: set(rows)}


def test_a_sum_over_one_of_two_axes_of_units_is_lost() -> None:
    bench, _, a, _ = bench_of()
    both = bench.holding(torch.stack([a, a.roll(1)]), 2, 4)
    for use in (lambda x: x @ torch.ones(4, 3).double(), lambda x: torch.ones(3, 4).double() @ x.t()):
        bench.tracer.lost.clear()
        bench.run(use, both)
        ((site, reason),) = bench.tracer.lost.values()
        assert reason == "units lie along both axes of a matrix, and a product sums over one of them"
        assert site.operation == "mm"
    bench.tracer.lost.clear()
    for use in (lambda x: x @ torch.ones(4, 3).double(), lambda x: torch.ones(3, 4).double() @ x.t()):
        bench.run(use, bench.holding(a, 2, 4))
    assert not bench.tracer.lost


def test_a_bilinear_map_reads_two_layers() -> None:
    bench, model, a, h = bench_of()
    b = bench.layer("b", 5)
    out = bench.run(lambda x, y: F.bilinear(x, y, model.e, model.eb), h, bench.holding(b, 2, 6, 5))
    rows = bench.along("e", 0)
    assert (bench.along("e", 1), bench.along("e", 2)) == (a.tolist(), b.tolist())
    assert bench.found(out) == torch.tensor(rows).expand(2, 6, 3).tolist()
    assert multiplied(bench) == [(12 * 3 * 4 * 5, [rows, a.tolist(), b.tolist()])]
    assert bench.recording.roles["e", 1] == bench.recording.roles["e", 2] == {"reads"}
    assert bench.along("eb", 0) == rows


def test_a_bilinear_map_of_constants_reads_nothing() -> None:
    bench, _, _, h = bench_of()
    assert bench.found(bench.run(lambda h: F.bilinear(h, h, torch.ones(3, 4, 4).double()), h)) is None
    assert not bench.recording.products


def test_rows_of_weights_begin_widths() -> None:
    for use in (lambda m, x: F.linear(x, m.w), lambda m, x: m.w @ x.mT):
        model = Weights()
        bench = Bench(model, ALL)
        bench.run(use, model, torch.ones(2, 6, 4).double())
        assert {name: (layer.cell, layer.labels.tolist()) for name, layer in bench.tracer.widths.layers.items()} == {
            "w:features": ("linear", bench.along("w", 0))
        }


def test_what_is_added_to_a_product_follows() -> None:
    """A learned matrix, or units, added by `baddbmm`."""
    bench, model, a, h = bench_of()
    scores = torch.ones(2, 6, 6, dtype=torch.float64)
    assert bench.found(bench.run(torch.baddbmm, h, scores, h)) == a.expand(2, 6, 4).tolist()
    made = bench.run(lambda h: torch.addmm(model.added, h[0], model.t), h)
    assert bench.along("added", 1) == bench.along("t", 1)
    assert bench.found(made) == [bench.along("t", 1)] * 6
    b = bench.layer("b", 4)
    bench.run(torch.baddbmm, bench.holding(b, 2, 6, 4), scores, h)
    assert bench.roots(b).tolist() == a.tolist()
    same = bench.run(torch.addmm, h[0], torch.ones(6, 2).double(), torch.ones(2, 4).double())
    assert bench.found(same) == a.expand(6, 4).tolist()


def test_a_weight_read_in_parts_of_two_axes() -> None:
    """`einsum("btki,kio->bto")` sums over steps and units at once: the axis of the units is read."""
    bench, model, a, h = bench_of()
    bench.run(lambda h: torch.einsum("bki,kio->bo", h[:, :2], model.m), h)
    assert bench.along("m", 1) == a.tolist()
    assert bench.recording.roles["m", 1] == {"reads"}
    assert not bench.pins
    assert bench.apart(a)


def test_states_made_in_a_size_have_their_units_where_a_weight_reads() -> None:
    for make, sized in (
        (lambda: torch.zeros(2, size("n", 4)), True),
        (lambda: torch.zeros(2, 2 * size("n", 2)), True),
        (lambda: torch.zeros(size("n", 3), 4), False),
        (lambda: torch.zeros(2, 4), False),
    ):
        bench, model, _, _ = bench_of()
        made = bench.run(lambda make=make, m=model: F.linear(make().double(), m.w))
        rows, read = bench.along("w", 0), bench.along("w", 1)
        assert bench.found(made) == [rows] * len(made)
        assert {labels for _, _, labels in bench.sizes} == ({tuple(read)} if sized else set())
        assert multiplied(bench) == [(len(made) * 3 * 4, [rows, read])]
    # Among all widths, too, a size of another axis makes no units.
    bench = Bench(Weights(), ALL)
    model = bench.model
    made = bench.run(lambda: F.linear(torch.zeros(size("n", 3), 4).double(), model.w))
    assert bench.found(made) == [bench.along("w", 0)] * 3
    assert not bench.pins
    # Beside units: the size is that of what lies along it.
    bench, model, a, h = bench_of()
    bench.run(lambda h: F.linear(torch.cat([h[:, 0], torch.zeros(2, size("n", 3)).double()], 1), model.wide), h)
    read = bench.along("wide", 1)
    assert read[:4] == a.tolist()
    assert bench.sizes == {("self.n", 1, tuple(read[4:]))}


def test_learned_states_beside_units_are_read_with_them() -> None:
    bench, model, a, h = bench_of()
    bench.run(lambda h: F.linear(torch.cat([h[:, 0], model.start.expand(2, 3)], 1), model.wide), h)
    start = bench.along("start", 1)
    assert len(set(start)) == 3
    assert bench.along("wide", 1) == [*a.tolist(), *start]
    assert bench.recording.roles["start", 1] == {"follows"}
    assert bench.apart(a)


def test_units_that_all_go_together_are_read_as_units() -> None:
    """Coupled as they are, they do not pass through: a weight reads a column for each."""
    bench, model, a, h = bench_of()
    bench.recording.couplings.union(a[:3].numpy(), a[1:].numpy())
    out = bench.run(lambda h: F.linear(h, model.w), h)
    assert bench.along("w", 1) == [int(a[0])] * 4
    assert bench.found(out) == torch.tensor(bench.along("w", 0)).expand(2, 6, 3).tolist()


def test_a_single_unit_is_summed_over() -> None:
    bench, _, _, _ = bench_of()
    one = bench.layer("one", 1)
    assert bench.found(bench.run(lambda x: x @ torch.ones(1, 3).double(), bench.holding(one, 2, 1))) is None
    assert [labels.tolist() for labels in bench.recording.direct] == [one.tolist()]
    # Of heads, each of one number, all stay.
    heads = bench.layer("heads", 4)
    x = bench.holding(heads.view(4, 1, 1), 4, 6, 1)
    assert (
        bench.found(bench.run(lambda x: x @ torch.ones(4, 1, 3).double(), x))
        == heads.view(4, 1, 1).expand(4, 6, 3).tolist()
    )
    assert len(bench.recording.direct) == 1


def test_a_field_that_is_multiplied_with_a_step_of_data() -> None:
    """`field(h).view(units, channels) @ dx`: what is summed up for one unit goes together."""
    bench, model, _, h = bench_of()
    out = bench.run(lambda h: F.linear(h[:, 0], model.six).view(2, 3, 2) @ torch.randn(2, 2, 1).double(), h)
    first, _, second, _, third, _ = rows = bench.along("six", 0)
    assert rows == [first, first, second, second, third, third]
    assert len({first, second, third}) == 3
    assert bench.found(out) == [[[first], [second], [third]]] * 2
    # Not of what two weights make.
    bench, model, _, h = bench_of()
    ones = torch.ones(2, 3, 1).double()
    made = bench.run(lambda h: torch.stack([F.linear(h[:, 0], model.w), F.linear(h[:, 0], model.t.t())], 1) @ ones, h)
    assert bench.found(made) is None
    assert len({*bench.along("w", 0), *bench.along("t", 1)}) == 6


def test_a_constant_matrix_mixes_what_recurs_along_it() -> None:
    """Gates cut across the nodes of a graph: at every other node stands the other gate's unit."""
    gates = torch.tensor([[1, 2], [3, 4]]).repeat(3, 1)
    for labels, matrix, classes in (
        (gates, "near", {(1, 3), (2, 4)}),
        # Nothing recurs: a column of the matrix is read by both features of its node.
        (torch.arange(1, 13).view(6, 2), "near", {(k, k + 1) for k in range(1, 12, 2)}),
        (gates, "none", set()),
    ):
        bench, model, _, _ = bench_of()
        own = bench.recording.couplings.new(12)
        x = bench.holding(torch.from_numpy(own)[labels - 1], 6, 2)
        out = bench.run(torch.mm, getattr(model, matrix, torch.ones(6, 6).double()), x)
        roots = bench.roots(own)
        found = {tuple(number + 1 for number in range(12) if roots[number] == root) for root in roots}
        assert {each for each in found if len(each) > 1} == classes
        if (1, 3) in classes:
            assert bench.found(out) == roots[:2][None].repeat(6, 0).tolist()


def test_a_matrix_for_each_head_goes_with_it() -> None:
    bench, model, a, _ = bench_of()
    x = bench.holding(a.view(4, 1, 1), 4, 6, 3)
    out = bench.run(lambda x: torch.bmm(x, model.heads), x)
    assert bench.found(out) == a.view(4, 1, 1).expand(4, 6, 5).tolist()
    assert bench.along("heads", 0) == a.tolist()
    assert bench.recording.roles["heads", 0] == {"follows"}
    assert bench.apart(a)


def test_products_of_heads_couple_them() -> None:
    bench, _, a, _ = bench_of()
    b = bench.layer("b", 4)
    x, y = (bench.holding(units.view(4, 1, 1), 2, 4, 6, 3) for units in (a, b))
    out = bench.run(lambda x, y: x @ y.mT, x, y)
    assert bench.found(out) == a.view(4, 1, 1).expand(2, 4, 6, 6).tolist()
    assert bench.roots(b).tolist() == a.tolist()
    assert {label for labels in bench.tracer.widths.heads for label in bench.roots(labels).tolist()} == set(a.tolist())
    assert multiplied(bench) == [(2 * 4 * 6 * 6 * 3, [a.tolist() * 2])]
    assert not bench.pins


def test_a_weight_along_another_axis_than_that_of_units() -> None:
    """A learned matrix over steps: its rows are positions; among all widths they stay, and are pinned."""
    bench, model, a, h = bench_of()
    assert bench.found(bench.run(lambda h: model.over @ h, h)) == a.expand(2, 3, 4).tolist()
    assert [labels.tolist() for labels in bench.recording.positions] == [bench.along("over", 0)]
    assert not bench.pins
    model = Weights()
    bench = Bench(model, ALL)
    a = bench.layer("a", 4)
    assert bench.found(bench.run(lambda h: model.over @ h, bench.holding(a, 2, 6, 4))) == a.expand(2, 3, 4).tolist()
    assert bench.pins == {"what it computes has units along another axis, too": set(bench.along("over", 0))}
    # Rows that data make are positions where another weight makes features of their columns.
    bench, model, _, _ = bench_of()
    x = torch.randn(2, 6, 4).double()
    mixed = bench.run(lambda x: model.over @ x, x)
    rows = bench.along("over", 0)
    assert bench.found(mixed) == torch.tensor(rows)[:, None].expand(2, 3, 4).tolist()
    made = bench.run(lambda x: F.linear(x, model.w), mixed)
    assert bench.found(made) == torch.tensor(bench.along("w", 0)).expand(2, 3, 3).tolist()
    assert bench.pins == {"a weight is applied along another axis of what holds its units": set(rows)}
    assert [labels.tolist() for labels in bench.recording.positions] == [rows]
    # The other way round features go before the rows of what mixes them.
    bench, model, _, _ = bench_of()
    made = bench.run(lambda x: torch.bmm(model.over.expand(2, 3, 6), x @ model.t), x)
    assert bench.found(made) == torch.tensor(bench.along("t", 1)).expand(2, 3, 3).tolist()
    assert [labels.tolist() for labels in bench.recording.positions] == [bench.along("over", 0)]
    assert not bench.pins
