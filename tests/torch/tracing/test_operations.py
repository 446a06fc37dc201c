"""What is done with units, operation by operation: exact, or pinned with the reason and the line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import reprune.torch
from reprune.core.layers import Layer
from tests.helpers.torch_oracle import check_oracle, random_plans

pytestmark = pytest.mark.filterwarnings("ignore:index_reduce")
Use = Callable[[torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """A GRU, something that is done with its units (B, T, 12), and a layer that reads what is left of width 12."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.use, self.rnn, self.out = use, nn.GRU(5, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.use(self.rnn(x)[0])
        return self.out(h) if h.size(-1) == self.out.in_features else h


def inspected(use: Use) -> tuple[Net, Layer]:
    torch.manual_seed(0)
    net = Net(use).double()
    structure = reprune.torch.inspect(net, [frames()]).structure
    layer = structure.layers["rnn:l0"]
    if layer.pin is None and layer.approximate is None:
        for plan in random_plans(structure, 2):
            check_oracle(net, plan, frames())
    return net, layer


def frames() -> torch.Tensor:
    return torch.randn(4, 6, 5, dtype=torch.float64)


NEIGHBOURS = torch.tensor([0, 0, 3, 5, 2, 3])


def over_time(h: torch.Tensor) -> torch.Tensor:
    return NEIGHBOURS[None, :, None].expand_as(h)


def checked(test: Callable[[torch.Tensor], bool | torch.Tensor]) -> Use:
    """Units that pass through after a question about them."""

    def use(h: torch.Tensor) -> torch.Tensor:
        assert test(h)
        return h

    return use


def history(h: torch.Tensor) -> torch.Tensor:
    """Zeros beside units, shifted by one step."""
    held = torch.zeros_like(h)
    held[:, 1:] = h[:, :-1]
    return held


EXACT: dict[str, Use] = {
    "scatter_add": lambda h: torch.zeros_like(h).scatter_add(1, over_time(h), h),
    "scatter_add onto units": lambda h: h.scatter_add(1, over_time(h), h * 2),
    "index_add": lambda h: torch.zeros_like(h).index_add(1, NEIGHBOURS, h),
    "segment_reduce": lambda h: torch.segment_reduce(h, "mean", lengths=torch.tensor([1, 3])),
    "scatter_reduce": lambda h: torch.zeros_like(h).scatter_reduce(1, over_time(h), h, "mean"),
    "index_reduce": lambda h: torch.zeros_like(h).index_reduce(1, NEIGHBOURS, h, "amax"),
    "index_put, accumulated": lambda h: torch.zeros_like(h).index_put_(
        (torch.arange(4)[:, None], NEIGHBOURS[None].expand(4, -1)), h, accumulate=True
    ),
    "zero_": lambda h: h + h.clone().zero_(),
    "fill_": lambda h: h * h.clone().fill_(2.0),
    "index_fill": lambda h: h.index_fill(1, torch.tensor([1]), 0.0),
    "clamp_": lambda h: h.clone().clamp_(-0.1, 0.1),
    "gelu_": lambda h: torch.ops.aten.gelu_(h.clone()),
    "history": history,
    "fft over time": lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1), n=6, dim=1),
    "complex": lambda h: (torch.complex(h, h * 2) * 1j).abs(),
    "bicubic": lambda h: F.interpolate(h.transpose(1, 2)[..., None], size=(4, 1), mode="bicubic")[..., 0].transpose(
        1, 2
    ),
    "transpose_": lambda h: h.clone().transpose_(1, 2).contiguous().transpose_(1, 2),
    "unsqueeze_ and squeeze_": lambda h: h.clone().unsqueeze_(2).squeeze_(2),
    "spectrum": lambda h: (
        torch.stft(h.transpose(1, 2).reshape(-1, 6), 4, 2, window=torch.ones(4, dtype=h.dtype), return_complex=True)
        .abs()
        .sum((1, 2))
        .view(4, 1, -1)
    ),
    "rot90": lambda h: torch.rot90(h, 2, (0, 1)),
    "equal": checked(lambda h: torch.equal(h[:, -1], h.clone()[:, -1])),
    "allclose": checked(lambda h: torch.allclose(h, h + 0)),
    "all": checked(lambda h: (h == h.clone()).all()),
    "any": checked(lambda h: not torch.isnan(h).any()),
    "isfinite of the sum": checked(lambda h: torch.isfinite(h.sum())),
    "largest": checked(lambda h: h.abs().max() < 2),
    "zeros like a mean": lambda h: h + torch.zeros_like(h.mean(-1, keepdim=True)),
    "the largest over time": lambda h: h.gather(1, h.argmax(1, keepdim=True)),
    "cdist": lambda h: torch.cdist(h, h[:, :2]),
    "sum": lambda h: h.sum(-1, keepdim=True),
    "sparse product": lambda h: torch.stack([torch.sparse.mm(torch.eye(6).double().to_sparse(), one) for one in h]),
}

NORMALISED: dict[str, Use] = {
    "layer norm": lambda h: (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True) + 1e-5).sqrt(),
    "layer norm without keepdim": lambda h: h - h.mean(-1).unsqueeze(-1),
    "root mean square": lambda h: h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5),
    "standard score": lambda h: (h - h.mean()) / (h.std() + 1e-5),
    "in place": lambda h: h.clone().sub_(h.mean(-1, keepdim=True)),
}

PINNED: dict[str, tuple[Use, str]] = {
    "mean": (lambda h: h.mean(-1, keepdim=True), "'mean' runs over its units"),
    "mean, then squeezed": (lambda h: h.mean(-1, keepdim=True).squeeze(-1), "'mean' runs over its units"),
    "mean of all": (lambda h: h.mean()[None], "'mean' runs over its units"),
    "mean beside units": (lambda h: torch.cat([h, h.mean(-1, keepdim=True)], -1)[..., 1:], "'mean' runs over"),
    "mean as a gate": (lambda h: h * h.mean(-1, keepdim=True).sigmoid(), "'mean' runs over its units"),
    "mean as attention": (lambda h: h * h.mean(-1, keepdim=True).softmax(1), "'mean' runs over its units"),
    "mean subtracted and returned": (
        lambda h: (h - h.mean(-1, keepdim=True)).sum(-1) + h.mean(-1), "'mean' runs over its units",
    ),
    "deviation": (lambda h: h.std(-1), "'std' runs over its units"),
    "all as a value": (lambda h: h * (h < 2).all(-1, keepdim=True), "'all' runs over its units"),
    "largest as a number": (lambda h: h + float(h.max()), "'max' runs over its units"),
    "which is largest": (lambda h: h + h.argmax(-1, keepdim=True), "'argmax' runs over its units"),
    "when they vary most": (
        lambda h: h.gather(1, h.std(-1).argmax(-1)[:, None, None].expand(-1, 1, h.size(-1))), "'std' runs over its",
    ),
    "how many": (lambda h: h + (h > 0.3).nonzero().sum(), "'nonzero' runs over its units"),
    "drawn by a mean": (lambda h: h * h.mean(-1, keepdim=True).sigmoid().bernoulli(), "'mean' runs over its units"),
    "drawn by a mean, in place": (
        lambda h: h * h.new_empty(4, 6, 1).bernoulli_(h.mean(-1, keepdim=True).sigmoid()), "'mean' runs over its",
    ),
    "filled with a deviation": (lambda h: h * h.new_empty(4, 6, 1).fill_(h.std()), "'std' runs over its units"),
    "filled in part": (
        lambda h: h * h.new_ones(4, 6, 1).index_fill(1, torch.tensor([1]), h.std()), "'std' runs over its units",
    ),
    "softmax": (lambda h: h.softmax(-1), "'_softmax' runs over its units"),
    "scatter_add over units": (
        lambda h: torch.zeros_like(h).scatter_add(2, torch.zeros_like(h).long(), h), "along the axis of its",
    ),
    "index_put, two units at one place": (
        lambda h: torch.zeros_like(h).index_put_(
            (torch.arange(4)[:, None, None], torch.arange(6)[:, None], torch.arange(12).clamp(max=10)), h, True
        ), "entries of different units are added",
    ),
    "sparse": (lambda h: h[0].to_sparse().to_dense()[None], "made a sparse or nested tensor"),
    "inverse": (lambda h: torch.linalg.pinv(h), "not an operation that reprune can follow"),
}  # fmt: skip


@pytest.mark.parametrize("use", EXACT.values(), ids=EXACT)
def test_exact(use: Use) -> None:
    _, layer = inspected(use)
    assert layer.pin is None
    assert layer.approximate is None


@pytest.mark.parametrize("use", NORMALISED.values(), ids=NORMALISED)
def test_normalisations_are_approximate(use: Use) -> None:
    net, layer = inspected(use)
    assert layer.pin is None
    assert layer.approximate is not None
    assert __file__ in layer.approximate.location
    assert reprune.torch.prune(net, [frames()], 0.5, method="magnitude").model(frames()).shape == (4, 6, 3)


@pytest.mark.parametrize(("use", "reason"), PINNED.values(), ids=PINNED)
def test_pinned(use: Use, reason: str) -> None:
    _, layer = inspected(use)
    assert layer.pin is not None
    assert reason in layer.pin.reason
    assert __file__ in layer.pin.site.location


@pytest.mark.parametrize("method", ["reconstruct", "magnitude"])
@pytest.mark.filterwarnings("ignore::reprune.core.errors.CalibrationWarning")
def test_a_sparse_buffer(method: str) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("near", (torch.rand(6, 6) > 0.5).float().to_sparse())
            self.rnn, self.out = nn.GRU(5, 12, batch_first=True), nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.stack([torch.sparse.mm(self.near, one) for one in self.rnn(x)[0]]))

    torch.manual_seed(0)
    model, x = Graph(), torch.randn(4, 6, 5)
    result = reprune.torch.prune(model, [x, x], 0.5, method=method)
    assert result.plan.counts() == {"rnn:l0": 6}
    torch.testing.assert_close(result.model(x), reprune.torch.mask(model, result.plan)(x))


def test_a_question_that_fewer_units_answer_otherwise() -> None:
    """A branch that is chosen by all units: the pruned pass takes the one that the masked one does not."""
    _, layer = inspected(lambda h: h * 2 if (h.abs() > 1e-9).all() else h)
    assert layer.pin is not None
    assert "count there even when they are zero" in layer.pin.reason


class Pairs(nn.Module):
    """Four units as two pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[0].view(*x.shape[:2], 2, 2).flip(-1).flatten(2))


def test_two_units_are_a_part_of_four() -> None:
    layer = reprune.torch.inspect(Pairs().double(), [frames()], verify=False).structure.layers["rnn:l0"]
    assert layer.pin is not None
    assert "its units are split into parts of 2" in layer.pin.reason


class OneHot(nn.Module):
    """Words as rows of a buffer that the model keeps and fills in place, read by a GRU with a state from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.rnn, self.out = torch.zeros(4, 9), nn.GRU(9, 8), nn.Linear(8, 3)

    def forward(self, words: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.rows = self.rows.to(state.dtype).zero_().scatter_(1, words[:, None], 1)
        h, state = self.rnn(self.rows[None], state)
        return self.out(h[0]), state


def test_a_number_that_is_scattered_is_no_unit() -> None:
    torch.manual_seed(0)
    batch = torch.tensor([0, 3, 8, 2]), torch.randn(1, 4, 8, dtype=torch.float64)
    structure = reprune.torch.inspect(OneHot().double(), [batch]).structure
    assert structure.prunable == ("rnn:l0",)
    assert not [slot for slot in structure.slots if (slot.tensor, slot.axis) == ("rnn.weight_ih_l0", 1)]


class Looks(nn.Module):
    """A cut at a place that the caller hands in as numbers, of steps of which there are none at first."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(5, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(len(x), self.cell.hidden_size)
        done = h[:0]
        for t in range(x.size(1)):
            h = self.cell(x[:, t], h[: len(x)])
            done = torch.cat([done, h[len(x) :], h])
        return self.out(done[int(places[0].long()) :])


def test_empty_tensors_of_units_and_places_from_the_caller() -> None:
    torch.manual_seed(0)
    model, batch = Looks().double(), (frames(), torch.tensor([1.0, 2.0], dtype=torch.float64))
    structure = reprune.torch.inspect(model, [batch]).structure
    assert structure.prunable == ("cell:l0",)
    for plan in random_plans(structure, 2):
        check_oracle(model, plan, batch)
