"""Operations that move elements: units are found where their values went, and cuts are judged by what they cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from reprune.torch.tracing.structure.widths import ALL
from tests.helpers.torch_tracing import Bench, size

Tensor = torch.Tensor
A = torch.ops.aten
ROWS = torch.tensor([[2, 0, 1], [1, 1, 0]])
SOME = torch.tensor([0, 2])
EVEN = torch.arange(24).view(2, 3, 4) % 3 > 0


def written(x: Tensor, y: Tensor) -> Tensor:
    """Parts of one written over parts of the other."""
    x = x.clone()
    x[:, 1] = y[:, 2]
    x[0, :, 1:3] = y[1, :, :2]
    return x


MOVES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "cat": lambda x, y: torch.cat([x, y], 1),
    "cat, last": lambda x, y: torch.cat([y, x, y], -1),
    "stack": lambda x, y: torch.stack([x, y], 1),
    "hstack": lambda x, y: torch.hstack([x, y[:, :1]]),
    "block_diag": lambda x, y: A.block_diag([x[0], y[1]]),
    "index": lambda x, y: x[:, [2, 0]],
    "index of two": lambda x, y: x[SOME.clamp(max=1), SOME],
    "mask": lambda x, y: x[EVEN],
    "index_select": lambda x, y: x.index_select(1, SOME),
    "gather": lambda x, y: x.gather(1, ROWS[:, :, None].expand(2, 3, 4)),
    "gather over units": lambda x, y: x.gather(2, ROWS[:, :, None]),
    "take": lambda x, y: torch.take(x, ROWS * 5),
    "take_along_dim": lambda x, y: torch.take_along_dim(x, ROWS[:, :, None], 1),
    "masked_select": lambda x, y: x.masked_select(EVEN),
    "flip": lambda x, y: x.flip(1, 2),
    "roll": lambda x, y: x.roll((1, 2), (1, 2)),
    "rot90": lambda x, y: x.rot90(1, (1, 2)),
    "repeat": lambda x, y: x.repeat(2, 1, 2),
    "repeat_interleave": lambda x, y: x.repeat_interleave(2, 1),
    "tril": lambda x, y: x.tril(1),
    "triu": lambda x, y: x.triu(),
    "im2col": lambda x, y: F.unfold(x[:, None], (2, 2)),
    "pixel_unshuffle": lambda x, y: F.pixel_unshuffle(x[:, None, :2], 2),
    "channel_shuffle": lambda x, y: F.channel_shuffle(x.transpose(1, 2)[..., None], 2),
    "diag_embed": lambda x, y: x.diag_embed(1),
    "reflection": lambda x, y: F.pad(x, (1, 2), "reflect"),
    "replication": lambda x, y: F.pad(x, (1, 2, 0, 1), "replicate"),
    "unsafe_split": lambda x, y: A.unsafe_split(x, 2, 2),
    "unbind_copy": lambda x, y: torch.unbind_copy(x, 1),
    "slice_scatter": lambda x, y: torch.slice_scatter(x, y[:, :2], 1, 1),
    "select_scatter": lambda x, y: torch.select_scatter(x, y[:, 0], 1, 2),
    "diagonal_scatter": lambda x, y: torch.diagonal_scatter(x, y[:, :, 0], 0, 1, 2),
    "as_strided_scatter": lambda x, y: torch.as_strided_scatter(x, y[0, 0, :2], (2,), (5,), 3),
    "index_copy": lambda x, y: x.index_copy(1, SOME, y[:, :2]),
    "masked_scatter": lambda x, y: x.masked_scatter(EVEN, y),
    "scatter": lambda x, y: x.scatter(1, ROWS[:, :2, None].expand(2, 2, 4), y),
    "scatter of a number": lambda x, y: x.scatter(1, ROWS[:, :1, None].expand(2, 1, 4), 0),
    "index_put": lambda x, y: x.index_put((SOME.clamp(max=1), SOME), y[:, 1]),
    "copy": lambda x, y: x.clone().copy_(y[:, :1]),
    "written": written,
    "unbind": lambda x, y: x.unbind(2),
    "select": lambda x, y: x[:, -1],
    "steps": lambda x, y: x[:, ::2, 1:],
    "permute": lambda x, y: x.permute(2, 0, 1).reshape(4, -1),
    "windows": lambda x, y: x.unfold(2, 2, 1),
    "split": lambda x, y: x.split([1, 2], 1),
    "squeeze": lambda x, y: x[:, :1].squeeze(),
    "swapped in place": lambda x, y: x.clone().transpose_(0, 2),
    "diagonal": lambda x, y: x.diagonal(0, 1, 2),
    "clone": lambda x, y: x.clone().contiguous().to(torch.float32),
}


@pytest.mark.parametrize("use", MOVES.values(), ids=MOVES)
def test_labels_move_as_values_do(use: Callable[[Tensor, Tensor], Any]) -> None:
    """Labels of the result are what the operation makes of tensors whose values are the labels."""
    bench = Bench()
    labels = torch.from_numpy(bench.recording.couplings.new(48)).view(2, 2, 3, 4).clone()
    labels[0, 0, 0, 0] = labels[1, 1, 1] = 0
    x, y = (bench.holding(each) for each in labels)
    found = bench.run(use, x, y)
    expected = use(*labels.double())
    several = isinstance(found, (list, tuple))
    for one, wanted in zip(found, expected, strict=True) if several else [(found, expected)]:
        held = bench.tracer.units(one)
        assert held is not None
        assert torch.equal(held.double(), wanted.double())


def test_what_is_put_beside_units_is_none() -> None:
    bench = Bench()
    a = bench.layer("a", 3)
    x = bench.holding(a, 2, 3)
    wide = [0, *a.tolist(), 0]
    assert bench.found(bench.run(lambda h: F.pad(h, (1, 1), value=7.0), x)) == [wide, wide]
    assert (
        bench.found(bench.run(lambda h: torch.cat([torch.ones(2, 1).double(), h, h[:, :1] * 0 + 1], 1), x))
        == [[0, *a.tolist(), int(a[0])]] * 2
    )
    number = bench.run(lambda h: h.scatter(0, torch.tensor([[1, 1, 1]]), 3.0), x)
    assert bench.found(number) == [a.tolist(), [0, 0, 0]]
    assert bench.found(bench.run(torch.flip, torch.randn(2, 3), [0])) is None


class Kept(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.weight = nn.Parameter(torch.randn(1, 3)), nn.Parameter(torch.randn(4, 3))


def test_parameters_keep_their_elements_when_they_are_moved() -> None:
    model = Kept()
    bench = Bench(model)
    ids = bench.tracer.labels(model.weight)
    assert ids is not None
    found = bench.tracer.labels(bench.run(lambda: torch.cat([model.weight, model.start.flip(1)])))
    start = bench.tracer.labels(model.start)
    assert found is not None
    assert start is not None
    assert torch.equal(found, torch.cat([ids, start.flip(1)]))
    # Beside units, too; those alone are units.
    a = bench.layer("a", 3)
    both = bench.run(lambda h: torch.stack([h, model.start[0]]), bench.holding(a))
    assert bench.found(both) == [a.tolist(), [0, 0, 0]]
    assert torch.equal(bench.tracer.labels(both), torch.stack([a, start[0]]))


def test_channels_that_become_places_go_together() -> None:
    """Four channels make one of four times as many places: only whole ones can go."""
    for widths, classes in (({"convolution", "linear", "embedding"}, 2), ((), 8)):
        bench = Bench(widths=widths)
        labels = bench.recording.couplings.new(8)
        if widths:
            bench.tracer.widths.begin("convolution", "stem", labels)
        x = bench.holding(torch.from_numpy(labels).view(8, 1, 1), 2, 8, 3, 3)
        found = bench.found(bench.run(lambda h: F.pixel_shuffle(h, 2), x))
        assert len(set(bench.roots(labels).tolist())) == classes
        expected = F.pixel_shuffle(
            torch.from_numpy(bench.roots(labels)).view(1, 8, 1, 1).expand(2, 8, 3, 3).double(), 2
        )
        assert found == expected.tolist()
    assert bench.run(lambda h: F.pixel_shuffle(h, 2), torch.randn(1, 4, 2, 2)).shape == (1, 1, 4, 4)


def test_windows_that_overlap_are_added_unit_by_unit() -> None:
    bench = Bench()
    a = bench.layer("a", 3)
    parts = bench.holding(a.view(3, 1).repeat_interleave(2, 0), 1, 6, 4)  # Windows of two steps at four places.
    folded = bench.run(lambda h: F.fold(h, (1, 5), (1, 2)), parts)
    assert bench.found(folded) == [[[[int(unit)] * 5] for unit in a]]
    assert not bench.pins
    mixed = bench.holding(torch.tensor([[1, 2, 3, 1], [2, 3, 1, 2]]).repeat(1, 1), 1, 2, 4)
    assert bench.found(bench.run(lambda h: F.fold(h, (1, 5), (1, 2)), mixed)) == [[[[1, 2, 3, 1, 2]]]]
    mixed = bench.holding(torch.tensor([[1, 2, 3, 1], [3, 3, 1, 2]]), 1, 2, 4)
    assert bench.found(bench.run(lambda h: F.fold(h, (1, 5), (1, 2)), mixed)) is None
    assert bench.pins == {"entries of different units are added": {1, 2, 3}}


def side_by_side(bench: Bench, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two layers of four units each on one axis, in a tensor of this shape."""
    a, b = bench.layer("a", 4), bench.layer("b", 4)
    return a, b, bench.holding(torch.cat([a, b]), *shape, 8)


POSITION = "some of its units are taken by their position"
CUTS: dict[str, tuple[Callable[[Tensor], Any], str, bool, bool]] = {
    # What is done, whose units are pinned, whether the layers stay equal, whether the cut is remembered as suspicious.
    "both": (lambda h: h[..., :8], "", False, False),
    "between": (lambda h: h[..., :4], "", False, True),
    "within the first": (lambda h: h[..., :3], "a", False, True),
    "within the second": (lambda h: h[..., :6], "b", False, False),
    "within both": (lambda h: h[..., 2:6], "ab", False, False),
    "one unit": (lambda h: h[..., 5], "b", True, True),
    "steps": (lambda h: h[:, 1:, :], "", False, False),
    "one step": (lambda h: h[:, 1], "", False, False),
    "chunks": (lambda h: h.chunk(2, -1), "", True, True),
    "chunks of time": (lambda h: h.chunk(2, 1), "", False, False),
    "four chunks": (lambda h: h.chunk(4, 2), "ab", True, True),
    "pieces": (lambda h: h.split(4, 2), "", True, True),
    "two pieces": (lambda h: h.split([4, 4], 2), "", False, True),
    "uneven pieces": (lambda h: h.split([3, 5], 2), "a", False, True),
    "three pieces": (lambda h: h.split(3, 2), "ab", True, True),
    "narrow": (lambda h: h.narrow(2, 4, 4), "", False, True),
    "units one by one": (lambda h: h.unbind(2), "ab", True, True),
    "diagonal": (lambda h: h[0, :3].diagonal(), "a", True, True),
}


@pytest.mark.parametrize(("use", "pinned", "equal", "suspicious"), CUTS.values(), ids=CUTS)
def test_cuts(use: Callable[[Tensor], Any], pinned: str, equal: bool, suspicious: bool) -> None:
    bench = Bench()
    a, b, h = side_by_side(bench, 2, 6)
    before = len(bench.recording.suspects)
    bench.run(use, h)
    units = {"a": a, "b": b}
    held = {unit for name in pinned for unit in units[name].tolist()}
    assert bench.pins == ({POSITION: held} if held else {})
    assert bench.recording.count_coupled == [["a", "b"]] * len(bench.recording.count_coupled)
    assert bool(bench.recording.count_coupled) == equal
    assert (len(bench.recording.suspects) > before) == suspicious
    assert bench.apart(a, b)


def test_layers_of_two_units_are_cut_like_others() -> None:
    bench = Bench()
    a, b = bench.layer("a", 2), bench.layer("b", 2)
    bench.run(lambda h: h.chunk(2, -1), bench.holding(torch.cat([a, b]), 3, 4))
    assert bench.recording.count_coupled == [["a", "b"]] * 2
    assert not bench.pins


def test_rows_of_layers_one_above_the_other_are_no_cut() -> None:
    bench = Bench()
    a, b = bench.layer("a", 4), bench.layer("b", 4)
    rows = bench.holding(torch.stack([a, b]), 3, 2, 4)
    bench.run(lambda h: (h[:, 0], h.unbind(1), h.chunk(2, 1)), rows)
    assert not bench.recording.count_coupled
    assert not bench.recording.suspects
    assert not bench.pins


SEAMS: dict[str, tuple[Callable[[Tensor], Any], list[int], int]] = {
    # Of six units: what is done, before which units it cuts, and into how many pieces that stay equal.
    "halves": (lambda h: h.chunk(2, -1), [3], 2),
    "thirds": (lambda h: h.chunk(3, dim=2), [2, 4], 3),
    "fewer chunks than asked": (lambda h: h.chunk(5, -1), [2, 4], 3),
    "gate": (lambda h: F.glu(h), [3], 2),
    "pieces": (lambda h: h.split(size("n", 2), -1), [2, 4], 3),
    "one piece": (lambda h: h.split(size("n", 6), -1), [], 0),
    "pieces of two sizes": (lambda h: h.split([size("n", 2), size("m", 4)], -1), [2], 0),
    "first": (lambda h: h[..., : size("n", 2)], [2], 0),
    "from": (lambda h: h[..., size("n", 2) :], [2], 0),
    "last": (lambda h: h[..., -size("n", 2) :], [4], 0),
    "between": (lambda h: h[..., size("n", 2) : size("m", 3)], [2, 3], 0),
    "beyond the end": (lambda h: h[..., size("n", 2) : size("m", 9)], [2], 0),
    "so many from": (lambda h: h.narrow(2, size("n", 1), size("m", 4)), [1, 5], 0),
    "a width over time": (lambda h: h[:, : size("n", 2)], [], 0),
    "steps": (lambda h: h.chunk(2, 1), [], 0),
    "sequences": (lambda h: h.split(size("n", 2)), [], 0),
}


@pytest.mark.parametrize(("use", "before", "equal"), SEAMS.values(), ids=SEAMS)
def test_cuts_where_a_size_says(use: Callable[[Tensor], Any], before: list[int], equal: int) -> None:
    bench = Bench()
    a = bench.layer("a", 6)
    bench.run(use, bench.holding(a, 2, 4, 6))
    assert bench.recording.seams == {(int(a[k - 1]), int(a[k])) for k in before}
    assert [pieces.tolist() for pieces in bench.recording.aligned] == ([a.view(equal, -1).tolist()] if equal else [])
    assert not bench.pins


NO_SEAMS: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda h: h[..., :2],
    "a number after a size": lambda h: h[..., size("n", 2) : 5],
    "a size after a number": lambda h: h[..., 1 : size("n", 3)],
    "pieces that leave a rest": lambda h: h.split(size("n", 4), -1),
    "a number among sizes": lambda h: h.split([size("n", 2), 4], -1),
    "pieces of a number": lambda h: h.split(3, -1),
    "every other": lambda h: h[..., ::2],
}


@pytest.mark.parametrize("use", NO_SEAMS.values(), ids=NO_SEAMS)
def test_cuts_where_no_size_says_pin(use: Callable[[Tensor], Any]) -> None:
    bench = Bench()
    a = bench.layer("a", 6)
    bench.run(use, bench.holding(a, 2, 4, 6))
    assert not bench.recording.seams
    assert bench.pins == {POSITION: set(a.tolist())}


def test_no_seam_through_what_else_stands_there() -> None:
    """Neither where a place holds no unit, nor where another layer stands beside."""
    bench = Bench()
    a, b = bench.layer("a", 3), bench.layer("b", 3)
    bench.run(lambda h: h.chunk(2, -1), bench.holding(torch.cat([a, torch.tensor([0])])))
    bench.run(lambda h: h.chunk(3, -1), bench.holding(torch.cat([a, b])))
    assert not bench.recording.seams


def test_views_keep_layers_side_by_side_equal() -> None:
    bench = Bench()
    a, b = bench.layer("a", 3), bench.layer("b", 3)
    both = bench.holding(torch.cat([a, b]), 2, 6)
    bench.run(lambda h: h.view(2, 6, 1), both)
    assert not bench.recording.count_coupled
    bench.run(lambda h: h.view(2, 2, 3), both)
    assert bench.recording.count_coupled == [["a", "b"]]
    assert [site.operation for site in bench.recording.bonds.values()] == ["view"]
    bench.run(lambda x, y: torch.stack([x, y], 1), bench.holding(a, 2, 3), bench.holding(b, 2, 3))
    assert bench.recording.count_coupled == [["a", "b"]] * 2
    bench.run(lambda x, y: torch.stack([x, y], -1), bench.holding(a, 2, 3), bench.holding(b, 2, 3))
    assert bench.recording.count_coupled == [["a", "b"]] * 3
    # Within PyTorch's own modules that is no matter.
    bench.tracer.inside_module += 1
    bench.run(lambda x, y: torch.stack([x, y], 1), bench.holding(a, 2, 3), bench.holding(b, 2, 3))
    assert bench.recording.count_coupled == [["a", "b"]] * 3
    assert not bench.pins
    assert bench.apart(a, b)


def test_views_keep_rows_of_weights_aligned() -> None:
    """What no layer holds may be units of a cell written by hand: rows above each other are remembered."""
    bench = Bench()
    own = torch.from_numpy(bench.recording.couplings.new(6))
    bench.run(lambda h: h.view(2, 1, 6), bench.holding(own, 2, 6))
    assert not bench.recording.aligned
    bench.run(lambda h: h.view(2, 2, 3), bench.holding(own, 2, 6))
    assert [rows.tolist() for rows, _ in bench.recording.views[-2:]] == [
        rows.tolist() for rows in bench.recording.aligned
    ]
    assert [rows.tolist() for rows in bench.recording.aligned] == [
        [[1, 4], [2, 5], [3, 6]],
        [[1, 2, 3], [4, 5, 6]],
    ]
    assert not bench.recording.count_coupled


def test_views_that_take_a_layer_apart_pin_it() -> None:
    for shape, parts in (((2, 2, 3), {2, 3}), ((2, 1, 6), set()), ((12,), set())):
        bench = Bench()
        a = bench.layer("a", 6)
        bench.run(lambda h, shape=shape: h.view(shape), bench.holding(a, 2, 6))
        held = set(a.tolist())
        assert bench.pins == {f"its units are split into parts of {n}": held for n in parts}
        assert not bench.recording.aligned
    # Halves that a size has cut are layers of their own.
    bench = Bench()
    a = bench.layer("a", 6)
    bench.run(lambda h: [part.view(2, 3, 1) for part in h.chunk(2, -1)], bench.holding(a, 2, 6))
    assert not bench.pins


def test_a_single_unit_would_lose_its_axis() -> None:
    for use, lone in (
        (lambda h: h.squeeze(), True),
        (lambda h: h.squeeze(1), False),
        (lambda h: h.squeeze(-1), True),
        (lambda h: h.squeeze((1, 2)), True),
        (lambda h: h.clone().squeeze_(2), True),
        (lambda h: h.squeeze((0, 1)), False),
    ):
        bench = Bench()
        a = bench.layer("a", 6)
        bench.run(use, bench.holding(a, 2, 1, 6))
        assert [labels.tolist() for labels in bench.recording.lone] == [a.tolist()] * lone
        bench.run(use, torch.randn(2, 1, 6))
        assert len(bench.recording.lone) == lone


def test_states_made_in_sizes_that_are_stacked_stay_as_long() -> None:
    bench = Bench()
    n, m = size("n", 3), size("m", 3)
    bench.run(lambda: torch.stack([torch.zeros(2, n), torch.ones(2, 3), torch.zeros(2, m), torch.zeros(2, n)]))
    assert [[str(next(iter(one.terms))) for one in pair] for pair in bench.recording.level] == [
        ["self.n", "self.m"],
        ["self.n", "self.n"],
    ]
    bench.run(lambda: torch.cat([torch.zeros(2, n), torch.zeros(2, m)], 0))
    assert len(bench.recording.level) == 3
    for dim in (1, -1):
        bench.run(lambda dim=dim: torch.cat([torch.zeros(2, n), torch.zeros(2, m)], dim))
    assert len(bench.recording.level) == 3


def width_of(units: int) -> tuple[Bench, Tensor, Tensor]:
    """A width, its labels, and six steps of it (2, 6, units)."""
    bench = Bench(widths=ALL)
    labels = torch.from_numpy(bench.recording.couplings.new(units))
    bench.tracer.widths.begin("linear", "w", labels.numpy())
    return bench, labels, bench.holding(labels, 2, 6, units)


HEADS: dict[str, tuple[Callable[[Tensor], Any], list[int]]] = {
    # Twelve features viewed as three heads of four: which of them go together, by the first one.
    "open number of heads": (lambda h: h.view(2, 6, -1, 4), [1, 1, 1, 1, 5, 5, 5, 5, 9, 9, 9, 9]),
    "open length of heads": (lambda h: h.view(2, 6, 3, -1), [1, 2, 3, 4] * 3),
    "heads from an attribute": (lambda h: h.view(2, 6, size("n", 3), 4), [1, 1, 1, 1, 5, 5, 5, 5, 9, 9, 9, 9]),
    "both from attributes": (lambda h: h.view(2, 6, size("n", 3), size("m", 4)), [1] * 4 + [5] * 4 + [9] * 4),
    "length from an attribute": (lambda h: h.reshape(2, 6, 3, size("m", 4)), [1, 2, 3, 4] * 3),
    "numbers": (lambda h: h.view(2, 6, 3, 4), list(range(1, 13))),
    "one head": (lambda h: h.view(2, 6, -1, 12), list(range(1, 13))),
    "steps apart": (lambda h: h.view(2, 2, -1, 12), list(range(1, 13))),
    "a part of them, over steps": (lambda h: h[..., :6].contiguous().view(12, -1), list(range(1, 13))),
    "equal pieces": (lambda h: h.chunk(3, -1), [1, 2, 3, 4] * 3),
    "pieces of a number": (lambda h: h.split(6, -1), [1, 2, 3, 4, 5, 6] * 2),
    "unequal pieces": (lambda h: h.split(5, -1), list(range(1, 13))),
    "pieces of two sizes": (lambda h: h.split([6, 6], -1), list(range(1, 13))),
    "pieces of time": (lambda h: h.split(2, 1), list(range(1, 13))),
    "one piece": (lambda h: h.split(12, -1), list(range(1, 13))),
}


@pytest.mark.parametrize(("use", "classes"), HEADS.values(), ids=HEADS)
def test_widths_that_are_taken_apart(use: Callable[[Tensor], Any], classes: list[int]) -> None:
    bench, labels, h = width_of(12)
    bench.run(use, h)
    assert bench.roots(labels).tolist() == classes
    assert not bench.pins


def test_widths_one_above_the_other_are_whole() -> None:
    bench, labels, _ = width_of(3)
    other = torch.from_numpy(bench.recording.couplings.new(3))
    bench.tracer.widths.begin("linear", "v", other.numpy())
    both = bench.holding(torch.stack([labels, other]), 7, 2, 3)
    bench.run(lambda h: h.view(7, -1, size("n", 3)), both)
    assert bench.apart(labels, other)
    assert not bench.tracer.widths.splits


def test_along_which_axis_a_width_shrinks_may_show_at_the_end() -> None:
    bench, labels, h = width_of(12)
    bench.run(lambda h: h.view(2, 6, 3, 4), h)
    ((held, dims),) = bench.tracer.widths.splits
    assert dims == [2, 3]
    assert held.squeeze().tolist() == labels.view(3, 4).tolist()


def test_a_width_is_cut_into_parts_of_its_own() -> None:
    for use, cuts, pinned in (
        (lambda h: h[..., :3], {0, 3}, False),
        (lambda h: h.split([3, 4, 5], -1), {0, 3, 7, 12}, False),
        (lambda h: h[..., 7], {7, 8}, False),
        (lambda h: h[..., ::2], None, True),
        (lambda h: h[:, 1:], None, False),
    ):
        bench, labels, h = width_of(12)
        bench.run(use, h)
        assert bench.tracer.widths.cuts == ({} if cuts is None else {"w:features": cuts})
        assert bench.pins == ({POSITION: set(labels.tolist())} if pinned else {})
