"""When two lists of outputs are the same, and what noise in removed units shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import reprune
from reprune.core.errors import VerificationError
from reprune.torch.surgery.verify import _differ

ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        ([ONES], [ONES + 1e-4], False),
        ([ONES], [ONES + 1e-2], True),
        ([ONES.double()], [ONES.double() + 1e-6], True),
        ([ONES.half()], [ONES.half() + 0.01], False),
        ([0.01 * ONES], [0.01 * ONES + 5e-5], True),
        ([0 * ONES], [0 * ONES + 5e-7], False),  # What is next to nothing is compared with 0.001.
        ([0 * ONES], [0 * ONES + 2e-6], True),
        ([ONES.bfloat16()], [ONES.bfloat16() + 0.1], False),
        ([ONES.bfloat16()], [ONES.bfloat16() + 0.5], True),
        ([ONES.half()], [ONES.half() + 0.1], True),
        ([1000 * ONES], [1000 * ONES + 0.1], False),  # As much as rounding, of what is that large.
        ([torch.tensor([1.0, float("nan")])], [torch.tensor([1.0, float("nan")])], False),
        ([ONES], [ONES[:1]], True),
        ([ONES], [ONES, ONES], True),
        ([ONES[:0]], [ONES[:0]], False),
        ([torch.tensor([1, 2])], [torch.tensor([1, 2])], False),
        ([torch.tensor([1, 10**6])], [torch.tensor([1, 10**6 + 1])], True),
        ([torch.tensor([True])], [torch.tensor([False])], True),
        ([torch.tensor([1 + 1j])], [torch.tensor([1 + 1.00001j])], False),
        ([torch.tensor([1 + 1j])], [torch.tensor([1 + 1.01j])], True),
        ([ONES, ONES], [ONES, ONES + 1], True),
    ],
)
def test_outputs_differ_by_more_than_rounding(
    first: list[torch.Tensor], second: list[torch.Tensor], differ: bool
) -> None:
    assert _differ(first, second) == differ


class Behind(nn.Module):
    """Units that are summed up behind PyTorch's back."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.rnn(x)[0]
        return self.out(h) + torch.from_numpy(h.detach().numpy().sum(-1, keepdims=True))


def test_what_is_read_unseen_is_told_with_the_layer() -> None:
    torch.manual_seed(0)
    with pytest.raises(VerificationError, match="reads the units of rnn:l0 in a way that was not seen"):
        reprune.inspect(Behind(), [torch.randn(4, 6, 5)])


class Random(Behind):
    """Noise that no seed of PyTorch's repeats is added to what it computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.out(self.rnn(x)[0])
        return logits + torch.from_numpy(np.random.default_rng().standard_normal(logits.shape)).to(logits)


def test_outputs_that_are_random_show_nothing() -> None:
    assert reprune.inspect(Random(), [torch.randn(4, 6, 5)]).structure.prunable == ("rnn:l0",)


class Long(Behind):
    """So many steps that noise which removed units read of each other would grow beyond all numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(5, 8, nonlinearity="relu", batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[0])


def test_noise_in_removed_units_does_not_grow() -> None:
    torch.manual_seed(0)
    assert reprune.inspect(Long(), [torch.randn(2, 100, 5)]).structure.prunable == ("rnn:l0",)


class NeedsTargets(nn.Module):
    """Cannot run in training mode on what it takes in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        logits = self.out(self.rnn(x)[0])
        return logits if not self.training else nn.functional.mse_loss(logits, targets)


class TrainsOnPairs(NeedsTargets):
    """In training mode it works with a size that is written into its code."""

    def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        h = self.rnn(x)[0]
        return self.out(h.view(*x.shape[:2], 4, 2).flip(-1).flatten(2) if self.training else h)


def test_a_training_mode_that_the_example_does_not_reach_is_not_rehearsed() -> None:
    assert reprune.inspect(NeedsTargets(), [torch.randn(4, 6, 5)]).structure.prunable == ("rnn:l0",)


def test_a_training_mode_that_the_example_reaches_is_rehearsed() -> None:
    pin = reprune.inspect(TrainsOnPairs(), [torch.randn(4, 6, 5)]).structure.layers["rnn:l0"].pin
    assert pin is not None
    assert "parts of 4" in str(pin)


class TrainsOnEight(NeedsTargets):
    """In training mode it insists on its units, behind PyTorch's back."""

    def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        h = self.rnn(x)[0]
        if self.training and h.detach().numpy().shape[-1] != 8:
            raise RuntimeError("eight or none")
        return self.out(h)


def test_what_fails_in_training_mode_alone_is_pinned() -> None:
    pin = reprune.inspect(TrainsOnEight(), [torch.randn(4, 6, 5)]).structure.layers["rnn:l0"].pin
    assert "with fewer units: eight or none" in str(pin)


class Wide(nn.Module):
    """Runs with fewer units of either layer, and not with fewer of both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.GRU(5, 20), nn.GRU(5, 20), nn.Linear(40, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.cat([self.a(x)[0], self.b(x)[0]], -1)
        if h.numel() < 4 * 6 * 27:
            raise RuntimeError("too narrow")
        return self.out(h)


def test_layers_that_cannot_lose_units_together_are_all_pinned() -> None:
    layers = reprune.inspect(Wide(), [torch.randn(4, 6, 5)]).structure.layers
    assert ["with fewer units: too narrow" in str(layer.pin) for layer in layers.values()] == [True, True]


class Normalised(Wide):
    """Does not run with fewer units of the second layer, which are normalised, so that nothing can be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.b(x)[0])
        if h.numel() < 4 * 6 * 20:
            raise RuntimeError("too narrow")
        return self.out(torch.cat([self.a(x)[0], h], -1))


def test_what_cannot_be_compared_must_run_nevertheless() -> None:
    assert reprune.inspect(Normalised(), [torch.randn(4, 6, 5)]).structure.prunable == ("a:l0",)
