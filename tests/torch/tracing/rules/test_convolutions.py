"""Convolutions and tables of embeddings: channels, groups, windows, and how much is multiplied."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from reprune.torch.tracing.structure.widths import ALL
from tests.helpers.torch_tracing import Bench

Tensor = torch.Tensor


def bench_of(module: nn.Module, widths: Any = ()) -> tuple[Bench, Any]:
    torch.manual_seed(0)
    module = module.double()
    return Bench(module, widths), module


def multiplied(bench: Bench) -> list[int]:
    return [product.rows * math.prod(map(len, product.axes)) for product in bench.recording.products]


DENSE: dict[str, tuple[nn.Module, tuple[int, ...], int, str | None]] = {
    # A module that reads four channels and makes six: the module, the places of its input, multiplications, the bias.
    "of steps": (nn.Conv1d(4, 6, 3), (7,), 2 * 5 * 3 * 4 * 6, "bias"),
    "without bias": (nn.Conv1d(4, 6, 2, bias=False), (7,), 2 * 6 * 2 * 4 * 6, None),
    "with a stride": (nn.Conv1d(4, 6, 3, stride=2), (7,), 2 * 3 * 3 * 4 * 6, "bias"),
    "of images": (nn.Conv2d(4, 6, (3, 2), padding=1), (5, 4), 2 * 5 * 5 * 6 * 4 * 6, "bias"),
    "of volumes": (nn.Conv3d(4, 6, 2), (3, 3, 3), 2 * 8 * 8 * 4 * 6, "bias"),
    "transposed": (nn.ConvTranspose1d(4, 6, 3), (7,), 2 * 7 * 3 * 4 * 6, "bias"),
    "transposed, with a stride": (nn.ConvTranspose2d(4, 6, 3, stride=2), (5, 4), 2 * 20 * 9 * 4 * 6, None),
    "of single places": (nn.Conv1d(4, 6, 1), (7,), 2 * 7 * 4 * 6, "bias"),
}


@pytest.mark.parametrize(("module", "places", "count", "bias"), DENSE.values(), ids=DENSE)
def test_channels_are_read(module: nn.Module, places: tuple[int, ...], count: int, bias: str | None) -> None:
    bench, module = bench_of(module)
    a = bench.layer("a", 4)
    out = bench.run(module, bench.holding(a.view(4, *[1] * len(places)), 2, 4, *places))
    reads, own = (0, 1) if isinstance(module, nn.modules.conv._ConvTransposeNd) else (1, 0)
    rows = bench.along("weight", own)
    assert bench.along("weight", reads) == a.tolist()
    assert len(set(rows)) == 6
    assert not set(rows) & {0, *a.tolist()}
    roles = {("weight", reads): {"reads"}, ("weight", own): {"own"}}
    assert bench.recording.roles == roles | ({} if module.bias is None else {("bias", 0): {"own"}})
    if module.bias is not None:
        assert bench.along("bias", 0) == rows
    assert bench.found(out) == torch.tensor(rows).view(6, *[1] * len(places)).expand(out.shape).tolist()
    assert bench.recording.biases == {("weight", reads): bias}
    assert bench.recording.maps == [(("weight", reads), ("weight", own))]
    assert bench.recording.uses == {"weight": 1}
    assert multiplied(bench) == [count]
    assert not bench.pins
    assert bench.apart(a)


def test_a_convolution_that_makes_one_channel_reads_each_once() -> None:
    bench, module = bench_of(nn.Conv1d(4, 1, 3))
    a = bench.layer("a", 4)
    bench.run(module, bench.holding(a.view(4, 1), 2, 4, 7))
    (product,) = bench.recording.products
    assert [bench.roots(axis).tolist() for axis in product.axes] == [[0], a.tolist()]
    assert product.rows == 2 * 5 * 3


def test_kernels_that_are_no_weights_pin() -> None:
    """Constants, and weights whose elements are in no order."""
    order = torch.randperm(72, generator=torch.Generator().manual_seed(0))
    for kernel, groups in (
        (lambda m: torch.ones(6, 4, 3).double(), 1),
        (lambda m: torch.ones(4, 1, 3).double(), 4),
        (lambda m: m.weight.flatten()[order].view(6, 4, 3), 1),
    ):
        bench, module = bench_of(nn.Conv1d(4, 6, 3))
        a = bench.layer("a", 4)
        x = bench.holding(a.view(4, 1), 2, 4, 7)
        assert bench.found(bench.run(lambda x, k=kernel, g=groups, m=module: F.conv1d(x, k(m), groups=g), x)) is None
        assert list(bench.pins.values()) == [set(a.tolist())]
        assert "a kernel that is no weight" in next(iter(bench.pins))
    bench, _ = bench_of(nn.Conv1d(4, 6, 3))
    assert bench.found(bench.run(lambda: F.conv1d(torch.ones(2, 4, 7), torch.ones(6, 4, 3)))) is None
    assert not bench.pins


def test_channels_begin_widths() -> None:
    for module, begins in ((nn.Conv1d(4, 6, 3), True), (nn.Conv1d(4, 4, 3, groups=4), False)):
        bench, module = bench_of(module, ALL)
        bench.run(module, torch.ones(2, 4, 7).double())
        rows = bench.along("weight", 0)
        assert {name: layer.labels.tolist() for name, layer in bench.tracer.widths.layers.items()} == (
            {":channels": rows} if begins else {}
        )


def test_depthwise_channels_follow() -> None:
    bench, module = bench_of(nn.Conv1d(4, 4, 3, groups=4))
    a = bench.layer("a", 4)
    out = bench.run(module, bench.holding(a.view(4, 1), 2, 4, 7))
    assert bench.along("weight", 0) == bench.along("bias", 0) == a.tolist()
    assert bench.recording.roles["weight", 0] == {"follows"}
    assert bench.found(out) == a.view(4, 1).expand(2, 4, 5).tolist()
    assert not bench.recording.biases
    assert multiplied(bench) == [2 * 5 * 3 * 4]
    assert not bench.pins


@pytest.mark.parametrize("transposed", [False, True])
def test_groups_of_widths(transposed: bool) -> None:
    """Channels that a group reads go together, and so do those that it makes."""
    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
    bench, module = bench_of(kind(4, 6, 3, groups=2), ALL)
    labels = torch.from_numpy(bench.recording.couplings.new(4))
    bench.tracer.widths.begin("linear", "w", labels.numpy())
    out = bench.run(module, bench.holding(labels.view(4, 1), 2, 4, 7))
    one, two = int(labels[0]), int(labels[2])
    made = [one] * 3 + [two] * 3
    assert bench.roots(labels).tolist() == [one, one, two, two]
    assert bench.along("weight", 0) == ([one, one, two, two] if transposed else made)
    assert bench.along("bias", 0) == made
    assert bench.found(out) == torch.tensor(made).view(6, 1).expand(out.shape).tolist()
    # In each of two groups two channels make three, by three taps, at every place that is read or made.
    assert multiplied(bench) == [2 * (7 if transposed else 5) * 2 * (2 * 3) * 3]
    assert not bench.pins


def test_groups_of_what_cannot_be_told_pin() -> None:
    bench, module = bench_of(nn.Conv1d(4, 6, 3, groups=2))
    a = bench.layer("a", 4)
    assert bench.found(bench.run(module, bench.holding(a.view(4, 1), 2, 4, 7))) is None
    assert bench.pins == {"a convolution in groups": set(a.tolist())}
    bench, module = bench_of(nn.Conv1d(4, 6, 3, groups=2, bias=False), ALL)
    labels = torch.from_numpy(bench.recording.couplings.new(2))
    bench.tracer.widths.begin("linear", "w", labels.numpy())
    half = torch.cat([labels, torch.zeros(2).long()])
    assert bench.found(bench.run(module, bench.holding(half.view(4, 1), 2, 4, 7))) is None
    assert bench.pins == {"a convolution in groups, some of which read no units": set(bench.roots(labels).tolist())}
    bench, module = bench_of(nn.Conv1d(4, 6, 3, groups=2))
    assert bench.found(bench.run(module, torch.ones(2, 4, 7).double())) is None
    assert not bench.pins


def test_windows_that_cover_all_units_read_them() -> None:
    """`nn.Conv2d(1, 3, (1, units))` over steps and units."""
    for bias in (True, False):
        bench, module = bench_of(nn.Conv2d(1, 3, (2, 4), bias=bias))
        a = bench.layer("a", 4)
        out = bench.run(module, bench.holding(a, 2, 1, 6, 4))
        rows = bench.along("weight", 0)
        assert bench.along("weight", 3) == a.tolist()
        assert bench.recording.roles["weight", 3] == {"reads"}
        assert bench.recording.biases["weight", 3] == ("bias" if bias else None)
        assert bench.found(out) == torch.tensor(rows).view(3, 1, 1).expand(2, 3, 5, 1).tolist()
        assert multiplied(bench) == [2 * 5 * 3 * 2 * 4]
        assert not bench.pins
    for module, shape in (
        (nn.Conv2d(1, 3, (2, 3)), (2, 1, 6, 4)),  # Not all.
        (nn.Conv2d(1, 3, (2, 4), padding=(0, 1)), (2, 1, 6, 4)),  # Beyond them.
        (nn.Conv2d(1, 3, (2, 6), padding=(0, 1)), (2, 1, 6, 4)),  # Wider than they are.
        (nn.ConvTranspose2d(1, 3, (2, 4)), (2, 1, 6, 4)),
        (nn.Conv2d(2, 4, (2, 4), groups=2), (2, 2, 6, 4)),
        (nn.Conv2d(1, 3, (2, 1)), (2, 1, 6, 4)),
    ):
        bench, module = bench_of(module)
        a = bench.layer("a", 4)
        assert bench.found(bench.run(module, bench.holding(a, *shape))) is None
        assert bench.pins == {"a convolution slides over its units": set(a.tolist())}
    # Channels and places at once.
    bench, module = bench_of(nn.Conv2d(2, 3, (1, 2)))
    a = bench.layer("a", 4)
    bench.run(module, bench.holding(a.view(2, 1, 2), 2, 2, 6, 2))
    assert bench.pins == {"a convolution slides over its units": set(a.tolist())}


def test_a_window_that_slides_over_widths_takes_all_of_them() -> None:
    bench, module = bench_of(nn.Conv1d(4, 6, 3), ALL)
    labels = torch.from_numpy(bench.recording.couplings.new(28)).view(4, 7)
    bench.tracer.widths.begin("linear", "w", labels.flatten().numpy())
    bench.run(module, bench.holding(labels, 2, 4, 7))
    firsts = labels[:, 0].tolist()
    assert bench.roots(labels).tolist() == [[first] * 7 for first in firsts]
    assert bench.along("weight", 1) == firsts
    assert not bench.pins


def test_places_that_are_all_alike_are_no_sliding() -> None:
    """A layer's units in channels, and a size's zeros beside them."""
    bench, module = bench_of(nn.Conv2d(4, 6, (1, 2)))
    a = bench.layer("a", 4)
    bench.run(module, bench.holding(a.view(4, 1, 1), 2, 4, 3, 2))
    assert bench.along("weight", 1) == a.tolist()
    assert not bench.pins


WINDOWS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "by number": lambda m, i: m(i),
    "by function": lambda m, i: F.embedding(i, m.weight),
    "a bag": lambda m, i: F.embedding_bag(i, m.weight, mode="sum"),
}


@pytest.mark.parametrize("use", WINDOWS.values(), ids=WINDOWS)
def test_columns_of_a_table_come_out(use: Callable[[Any, Tensor], Tensor]) -> None:
    bench, module = bench_of(nn.Embedding(9, 4), {"embedding"})
    out = bench.run(use, module, torch.tensor([[1, 2, 3], [0, 8, 1]]))
    columns = bench.along("weight", 1)
    assert len(set(columns)) == 4
    assert bench.recording.roles == {("weight", 1): {"own"}}
    assert bench.found(out) == torch.tensor(columns).expand(out.shape).tolist()
    assert {name: layer.labels.tolist() for name, layer in bench.tracer.widths.layers.items()} == {":columns": columns}


def test_a_table_that_shortens_its_rows_keeps_its_columns() -> None:
    for widths, pinned in (({"embedding"}, True), ((), False)):
        bench, module = bench_of(nn.Embedding(9, 4, max_norm=0.1), widths)
        bench.run(module, torch.tensor([1, 2]))
        columns = set(bench.along("weight", 1))
        reason = "max_norm shortens rows by their length over all columns"
        assert bench.pins == ({reason: columns} if pinned else {})


def test_a_table_that_is_no_weight_makes_no_units() -> None:
    bench, _ = bench_of(nn.Embedding(9, 4))
    assert bench.found(bench.run(lambda: F.embedding(torch.tensor([1, 2]), torch.ones(9, 4)))) is None
