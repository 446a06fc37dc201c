"""Where weights are: what a view of their memory, or what was computed from them, holds of their axes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from reprune.torch.calibration.watch import Seen, watch
from reprune.torch.calibration.weights import Part, Weights, Within


def layout(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Memory, and a tensor somewhere in it: numbers of one of its axes, which is returned, and -1 around them."""
    dims = int(rng.integers(1, 5))
    whole = torch.full(tuple(rng.integers(1, 4, dims).tolist()), -1)
    made = whole
    for d in range(dims):
        count = int(rng.integers(1, whole.shape[d] + 1))
        made = made.narrow(d, int(rng.integers(0, whole.shape[d] - count + 1)), count)
    made = made[..., :: int(rng.integers(1, 3))].permute(*rng.permutation(dims).tolist())
    axis = int(rng.integers(0, dims))
    made.copy_(torch.arange(made.shape[axis]).view(-1, *[1] * (dims - axis - 1)).expand(made.shape))
    return whole, made, axis


def view(rng: np.random.Generator, operand: torch.Tensor) -> torch.Tensor:
    """Some view of a tensor."""
    for _ in range(3):
        d = int(rng.integers(-operand.ndim, operand.ndim)) if operand.ndim else 0
        way = int(rng.integers(0, 6)) if operand.ndim else 5
        count = int(rng.integers(1, operand.shape[d] + 1)) if operand.ndim else 0
        if way == 0:
            operand = operand.narrow(d, int(rng.integers(0, operand.shape[d] - count + 1)), count)
        elif way == 1 and operand.ndim > 1:
            operand = operand.select(d, count - 1)
        elif way == 2:
            operand = operand.permute(*rng.permutation(operand.ndim).tolist())
        elif way == 3 and operand.is_contiguous():
            operand = operand.flatten(0, d % operand.ndim)
        elif way == 4:
            operand = operand.unsqueeze(d)
        elif way == 5:
            operand = operand.expand(2, *operand.shape)
    return operand


def test_views_hold_of_an_axis_what_their_memory_says() -> None:
    """Read off the numbers that lie there: consecutive ones along a dimension are the axis."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        whole, made, axis = layout(rng)
        weights = Weights({"w": made}, [("w", axis)])
        operand = view(rng, whole if rng.random() < 0.5 else made)
        for d in range(-operand.ndim, operand.ndim):
            line = operand.movedim(d, -1).reshape(-1, operand.shape[d])[0]
            read = int(line[0]) >= 0 and torch.equal(line, line[0] + torch.arange(len(line)))
            # Where the steps differ, consecutive numbers are those of several rows.
            read = read and (len(line) == 1 or operand.stride(d) == made.stride(axis))
            assert weights.along(operand, d) == ([Part(("w", axis), int(line[0]), 0, len(line))] if read else [])


def test_axes_that_one_dimension_holds_together_are_taken_apart() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        dims = int(rng.integers(2, 5))
        sizes = rng.integers(1, 4, dims).tolist()
        order, place = rng.permutation(dims), int(rng.integers(0, dims))
        made, axis = torch.arange(prod(sizes)).view(sizes).permute(*order.tolist()), int(np.argmax(order == place))
        weights, i, j = Weights({"w": made}, [("w", axis)]), *sorted(rng.integers(0, dims, 2).tolist())
        slower, faster = (prod(part) for part in (sizes[i:place], sizes[place + 1 : j + 1]))
        whole = made.permute(*np.argsort(order).tolist()).flatten(i, j)
        held = i <= place <= j and sizes[place] > 1 and slower * faster > 1
        expected = Within(Part(("w", axis), 0, 0, sizes[place]), slower, faster)
        for d in range(-whole.ndim, whole.ndim):
            assert weights.within(whole, d) == ([expected] if held and d % whole.ndim == i else [])
        # Nothing is taken apart that begins, or ends, in the middle of an axis.
        count = whole.shape[i] - 1
        assert not any(weights.within(whole.narrow(i, start, count), i) for start in (0, 1) if count)
        if held:
            numbers = torch.arange(sizes[place]).repeat_interleave(faster).repeat(slower)
            apart = expected.apart(torch.stack([numbers, numbers + 10]))
            assert apart.shape == (2, slower, faster, sizes[place])
            assert torch.equal(apart, (torch.arange(sizes[place]) + torch.tensor([[[[0]]], [[[10]]]])).expand_as(apart))


class Listener:
    """Notes what was read."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def read(self, seen: Seen) -> None:
        self.seen.append(seen)

    def feed_back(self, axis: Any, first: torch.Tensor, last: torch.Tensor) -> None:
        raise AssertionError


def numbered(*shape: int) -> torch.Tensor:
    """Numbers that are all different."""
    return torch.arange(1.0, prod(shape) + 1).view(shape)


def inferring(run: Callable[..., Any]) -> Callable[..., Any]:
    """The same in inference mode."""
    return torch.inference_mode()(run)


def into(w: torch.Tensor) -> torch.Tensor:
    """A larger tensor that has a weight in its middle."""
    buffer = torch.zeros(4, 8)
    buffer[:, 1:7].copy_(w)
    return buffer


def attending(w: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Two heads of attention from two sequences to shorter ones, whose keys and values are products with `w`."""
    query, key = numbered(5, 2, 4), KEYS
    found, _ = F.multi_head_attention_forward(
        query, key, -key, 4, 2, None, None, None, None, False, 0.0, out, None,
        use_separate_proj_weight=True, q_proj_weight=out, k_proj_weight=w, v_proj_weight=w,
    )  # fmt: skip
    return found


def scaled(w: torch.Tensor) -> torch.Tensor:
    """A copy that is transposed while it is scaled in place."""
    copy = w + 0.0
    copy.t().mul_(2)
    return copy


TENSORS = {
    "w": numbered(4, 6), "a": numbered(4, 2), "b": numbered(2, 6), "k": numbered(4, 2, 3), "u": numbered(6),
    "one": torch.ones(1).expand(6), "filters": numbered(5, 4, 3), "windows": numbered(5, 2, 6, 1), "d": numbered(4, 5),
    "m": numbered(4, 3, 5), "q": numbered(2, 2, 3, 2), "r": numbered(2, 2, 3, 4), "single": numbered(4, 1),
    "free": numbered(4, 4), "three": numbered(3),
}  # fmt: skip
H, V, ONES, SERIES, IMAGES = numbered(3, 6), numbered(6), torch.ones(3, 2), numbered(2, 4, 7), numbered(3, 2, 6, 7)
SIX, TWELVE, TWICE, KEYS = H.view(3, 2, 3), numbered(3, 12), numbered(2, 3, 6), numbered(3, 2, 6)
# Which axis of which tensor, how it is used, and what it reads: from which position on, and the features.
WAYS: dict[str, tuple[tuple[str, int], Callable[..., Any], list[tuple[int, torch.Tensor]]]] = {
    "by rows": (("w", 1), lambda w, **_: H @ w.t(), [(0, H)]),
    "by columns": (("w", 1), lambda w, **_: w @ H.t(), [(0, H)]),
    "its rows": (("w", 0), lambda w, **_: H[:, :4] @ w, [(0, H[:, :4])]),
    "not by the other axis": (("w", 0), lambda w, **_: H @ w.t(), []),
    "in batches": (("w", 1), lambda w, **_: torch.bmm(H[:, None], w.t().expand(3, -1, -1)), [(0, H[:, None])]),
    "in batches, added": (
        ("w", 1), lambda w, **_: torch.baddbmm(torch.zeros(1), w.expand(3, -1, -1), H[..., None]), [(0, H[:, None])]
    ),
    "with a bias": (("w", 1), lambda w, **_: torch.addmm(torch.zeros(4), H, w.t()), [(0, H)]),
    "all rows at once": (("w", 1), lambda w, **_: F.linear(TWICE, w) + TWICE @ w.t(), [(0, TWICE)] * 2),
    "one row": (("w", 1), lambda w, **_: F.linear(V, w), [(0, V[None])]),
    "before many": (("w", 1), lambda w, **_: w @ TWICE.mT, [(0, TWICE)]),
    "all axes but one": (("w", 1), lambda w, **_: torch.tensordot(TWICE, w, ([2], [1])), [(0, TWICE.view(6, 6))]),
    "in batches, from the left": (
        ("k", 2), lambda k, **_: torch.bmm(k, numbered(4, 3, 5)), [(0, numbered(4, 3, 5).mT)]
    ),
    "in attention": (
        ("w", 1), lambda w, free, **_: attending(w, free), [(0, KEYS), (0, -KEYS)]
    ),
    "twice as much": (("w", 1), lambda w, **_: torch.addmm(V[:4], H, w.t(), beta=2, alpha=3), [(0, H)]),
    "rows of something else": (("w", 1), lambda w, **_: torch.mm(TWICE.view(6, 6), w.t()), [(0, TWICE.view(6, 6))]),
    "a vector": (("w", 1), lambda w, **_: w @ V, [(0, V[None])]),
    "a vector, added": (("w", 1), lambda w, **_: torch.addmv(torch.zeros(4), w, V), [(0, V[None])]),
    "a vector before it": (("w", 1), lambda w, **_: V @ w.t(), [(0, V[None])]),
    "a row": (
        ("w", 1), lambda w, **_: torch.dot(w[1], V) + torch.dot(V, w[2]) + torch.vdot(w[0], V), [(0, V[None])] * 3
    ),
    "a weight of one axis": (("u", 0), lambda u, **_: H @ u, [(0, H)]),
    "one number, many times": (("one", 0), lambda one, **_: H @ one, [(0, H)]),
    "a part": (("w", 1), lambda w, **_: H[:, 2:5] @ w[:, 1:4].t(), [(1, H[:, 2:5])]),
    "parts": (
        ("w", 1), lambda w, **_: H[:, :2] @ w[:, :2].t() + H[:, 2:] @ w[:, 2:].t(), [(0, H[:, :2]), (2, H[:, 2:])]
    ),
    "in inference mode": (("w", 1), inferring(lambda w, **_: F.linear(H, (w + 0.0).multiply_(2))), [(0, H)]),
    "beside another": (("w", 1), lambda w, a, **_: torch.cat([ONES, H], 1) @ torch.cat([a, w], 1).t(), [(0, H)]),
    "the other": (("a", 1), lambda w, a, **_: torch.cat([H, ONES], 1) @ torch.cat([w, a], -1).t(), [(0, ONES)]),
    "under others": (
        ("w", 1), lambda w, b, **_: H @ torch.cat([torch.ones(2, 6), b, w]).t(), [(0, H)]
    ),
    "rows under others": (
        ("w", 0), lambda w, b, **_: numbered(3, 8) @ torch.cat((b, torch.ones(2, 6), w)), [(0, numbered(3, 8)[:, 4:])]
    ),
    "stacked": (("w", 1), lambda w, **_: H @ torch.stack([torch.ones(4, 6), w])[1].t(), [(0, H)]),
    "stacked behind": (("w", 1), lambda w, **_: H @ torch.stack([torch.ones(4, 6), w], -1)[..., 1].t(), [(0, H)]),
    "stacked between": (("w", 0), lambda w, **_: H[:, :4] @ torch.stack([w, w], 1)[:, 1], [(0, H[:, :4])]),
    "stacked between others": (("w", 1), lambda w, **_: H @ torch.stack([w, w], 1)[:, 1].t(), [(0, H)]),
    "what stands beside it": (("w", 1), lambda w, a, **_: H[:, :2] @ torch.cat([a, w], 1)[:, :2].t(), []),
    "beside nothing": (("w", 1), lambda w, **_: H @ torch.cat([torch.zeros(0), w], 1).t(), [(0, H)]),
    "padded": (("w", 1), lambda w, **_: F.pad(H, (1, 2)) @ F.pad(w, (1, 2, 3, 4)).t(), [(0, H)]),
    "rows padded": (("w", 0), lambda w, **_: numbered(3, 9) @ F.pad(w, (1, 2, 3, 2)), [(0, numbered(3, 9)[:, 3:7])]),
    "rows of what is padded": (("w", 0), lambda w, **_: H[:, :4] @ F.pad(w, (1, 2)), [(0, H[:, :4])]),
    "cut by padding": (("w", 1), lambda w, **_: H[:, 1:5] @ F.pad(w, (-1, -1)).t(), [(1, H[:, 1:5])]),
    "scaled": (("w", 1), lambda w, **_: H @ (w * 2).t(), [(0, H)]),
    "masked": (("w", 1), lambda w, **_: H @ (w * (w > 3)).t(), [(0, H)]),
    "scaled by columns": (("w", 1), lambda w, u, **_: H @ (w * u).t(), [(0, H)]),
    "scaling columns": (("u", 0), lambda w, u, **_: H @ (w * u).t(), [(0, H)]),
    "scaled by one for each row": (("w", 1), lambda w, a, **_: H @ (w * a[:, :1]).t(), [(0, H)]),
    "added to many": (("w", 1), lambda w, **_: H @ (w + torch.ones(2, 4, 6))[1].t(), [(0, H)]),
    "copied": (("w", 1), lambda w, **_: H @ torch.zeros(5, 4, 6).copy_(w)[3].t(), [(0, H)]),
    "copied into a part": (("w", 1), lambda w, **_: H[:, :3] @ into(w)[:, 2:5].t(), [(1, H[:, :3])]),
    "many that it is added to": (("w", 0), lambda w, **_: H[:, :4] @ (w + torch.ones(4, 4, 6))[:, 1], []),
    "one number for each row": (("single", 1), lambda single, **_: H @ (single * torch.ones(4, 6)).t(), []),
    "scaled in place": (("w", 1), lambda w, **_: H @ scaled(w).t(), [(0, H)]),
    "normalised": (
        ("w", 1), lambda w, **_: H @ torch._weight_norm(w, w.norm(dim=1, keepdim=True), 0).t(), [(0, H)]
    ),
    "what it makes is no weight": (("w", 0), lambda w, **_: (H @ w.t()) @ numbered(4, 3), []),
    "a bias is no weight": (("u", 0), lambda u, **_: (H + u) @ H.t(), []),
    "of low rank": (("b", 1), lambda a, b, **_: H @ (a @ b).t(), [(0, H)]),
    "of low rank, from the left": (("a", 0), lambda a, b, **_: H[:, :4] @ (a @ b), [(0, H[:, :4])]),
    "of low rank, between": (("a", 1), lambda a, b, **_: H @ (a @ b).t(), []),
    "of low rank, scaled before": (("b", 1), lambda a, b, **_: H @ ((a + 1) @ (b * 2)).t(), [(0, H)]),
    "after a weight that is not watched": (("w", 1), lambda w, free, **_: H @ (free @ w).t(), [(0, H)]),
    "before a weight that is not watched": (("w", 1), lambda w, free, **_: H @ (w.t() @ free), [(0, H)]),
    "in batches, before a weight": (
        ("k", 1), lambda k, m, **_: numbered(4, 7, 2) @ torch.bmm(k, m), [(0, numbered(4, 7, 2))]
    ),
    "in batches, after a weight": (
        ("m", 2), lambda k, m, **_: torch.bmm(numbered(4, 7, 5), torch.bmm(k, m).mT), [(0, numbered(4, 7, 5))]
    ),
    "added to what is of low rank": (("w", 1), lambda w, a, b, **_: H @ torch.addmm(w, a, b).t(), [(0, H)]),
    "multiplied with a weight": (("w", 1), lambda w, **_: w @ w.t(), []),
    "multiplied with a vector of the model": (("w", 1), lambda w, u, **_: w @ u, []),
    "filters": (("filters", 1), lambda filters, **_: F.conv1d(SERIES, filters), [(0, SERIES.permute(2, 0, 1))]),
    "filters, transposed": (
        ("filters", 0), lambda filters, **_: F.conv_transpose1d(SERIES[:, [0, 1, 2, 3, 0]], filters),
        [(0, SERIES[:, [0, 1, 2, 3, 0]].permute(2, 0, 1))],
    ),
    "windows": (("windows", 1), lambda windows, **_: F.conv2d(IMAGES, windows), [(0, IMAGES.permute(2, 3, 0, 1))]),
    "windows that are as long": (
        ("windows", 2), lambda windows, **_: F.conv2d(IMAGES, windows), [(0, IMAGES.movedim(2, -1))]
    ),
    "windows that are shorter": (("windows", 3), lambda windows, **_: F.conv2d(IMAGES, windows), []),
    "windows, transposed": (("windows", 2), lambda windows, **_: F.conv_transpose2d(numbered(1, 5, 6, 6), windows), []),
    "two axes at once": (("k", 1), lambda k, **_: torch.einsum("tij,oij->to", SIX, k), [(0, SIX[None, :, None].mT)]),
    "two axes at once, the faster": (("k", 2), lambda k, **_: H @ k.flatten(1).t(), [(0, SIX[:, :, None])]),
    "two axes, scaled": (("k", 2), lambda k, three, **_: H @ (k * three).flatten(1).t(), [(0, SIX[:, :, None])]),
    "two axes of what is computed": (
        ("k", 1), lambda k, d, **_: H @ (d.t() @ k.flatten(1)).t(), [(0, SIX[:, None].mT)]
    ),
    "two axes of what is computed, the faster": (
        ("k", 2), lambda k, d, **_: H @ (d.t() @ k.flatten(1)).t(), [(0, SIX[:, :, None])]
    ),
    "two axes of what is computed, on the left": (
        ("k", 0), lambda k, **_: numbered(3, 8) @ (k.flatten(0, 1) @ k[0].t()), [(0, numbered(3, 1, 4, 2).mT)]
    ),
    "two axes of what is computed, one by one": (
        ("k", 0), lambda k, **_: H[:, :4] @ (k.flatten(0, 1) @ k[0].t()).view(4, 2, 2)[:, 1, 1], [(0, H[:, :4])]
    ),
    "three axes of what is computed": (
        ("q", 2), lambda q, **_: TWELVE @ (numbered(2, 5).t() @ q.flatten(1)).t(), []
    ),
    "three axes of what is computed from weights": (
        ("q", 2), lambda q, b, **_: TWELVE @ (b.t() @ q.flatten(1)).t(), [(0, TWELVE.view(3, 2, 3, 2).mT)]
    ),
    "two axes in batches, one by one": (
        ("r", 2), lambda r, **_: H[:, :3] @ torch.bmm(r.flatten(1, 2), r[:, 0].mT).view(2, 2, 3, 3)[1, 1, :, 2],
        [(0, H[:, :3])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_an_axis_reads_what_it_is_summed_over_with(way: str) -> None:
    axis, run, expected = WAYS[way]
    matrices = [
        (name, dim)
        for name, tensor in TENSORS.items()
        for dim in range(tensor.ndim)
        if tensor.ndim > 1 and name != "free"
    ]
    listener = Listener()
    with watch(TENSORS, dict.fromkeys([*matrices, axis]), listener):
        found = run(**TENSORS)
    assert torch.equal(found, run(**TENSORS))
    assert {seen.axis for seen in listener.seen} <= {*matrices, axis}
    told = [seen for seen in listener.seen if seen.axis == axis]
    assert [seen.first for seen in told] == [first for first, _ in expected]
    for seen, (_, features) in zip(told, expected, strict=True):
        assert torch.equal(seen.features, features)
        assert not seen.answers


def test_weights_that_are_multiplied_with_each_other_read_nothing() -> None:
    k, m, listener = numbered(4, 2, 3), numbered(4, 3, 5), Listener()
    with watch({"k": k, "m": m}, [("k", 2), ("m", 1)], listener):
        torch.bmm(k, m)
    assert not listener.seen


@pytest.mark.parametrize("kept", [False, True])
def test_weights_are_cast_again_while_they_are_watched(kept: bool) -> None:
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(kept)
    with watch({}, [], Listener()):
        assert not torch.is_autocast_cache_enabled()
    assert torch.is_autocast_cache_enabled() == kept
    torch.set_autocast_cache_enabled(before)


@pytest.mark.parametrize("many", [2, 1000])
def test_what_was_computed_and_is_gone_is_no_weight(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """Other tensors may come to lie in its place, and are not taken for it; what is still there is known."""
    monkeypatch.setattr("reprune.torch.calibration.weights._MANY", many)
    w, k, c = numbered(4, 6), numbered(4, 2, 3), numbered(5, 4)
    weights = Weights({"w": w, "k": k, "c": c}, [("w", 1), ("k", 1)])
    held = w * 2
    weights.follow("mul", (w, 2), held)
    for _ in range(20):
        weights.follow("mul", (w, 2), w * 2)
        weights.follow("mm", (c, k.flatten(1)), c @ k.flatten(1))
        for other in [torch.ones(4, 6) for _ in range(5)]:
            assert not weights.along(other, 1)
            assert not weights.within(other, 1)
    assert weights.along(held, 1) == [Part(("w", 1), first=0, start=0, length=6)]
    assert (len(weights._lines) < 10) == (many == 2)
