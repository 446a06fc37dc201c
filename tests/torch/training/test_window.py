"""What a window of training passes knows: all that was seen, and of more than that a sample without bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reprune.core.evidence.readings import SplitMoments
from reprune.core.layers import Structure
from reprune.core.training.shrink import shrunk
from reprune.torch import trace
from reprune.torch.training.window import PENDING, ROWS, Window


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 3), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.lstm(x)[0])


@pytest.fixture
def structure() -> Structure:
    return trace(Net(), torch.randn(4, 2, 2))


def test_small_passes_count_whole(structure: Structure) -> None:
    rows = torch.randn(5 * 1500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 2
    assert len(rows) > PENDING
    window, resumed = Window(structure), Window(structure)
    for index, part in enumerate(rows.chunk(5)):
        window.see("lstm:l0", part)
        if index == 1:
            resumed.restore(window.state())
        if index > 1:
            resumed.see("lstm:l0", part)
    assert window.rows == len(rows)
    found = window.settled()["lstm:l0"]
    np.testing.assert_allclose(found.mean.numpy(), rows.mean(0).numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(rows.numpy().T, bias=True), rtol=1e-10)
    assert torch.equal(resumed.settled()["lstm:l0"].covariance, found.covariance)


def test_two_windows_in_one(structure: Structure) -> None:
    rows = torch.randn(60, 3, dtype=torch.float64)
    first, second = Window(structure), Window(structure)
    first.see("lstm:l0", rows[:20])
    second.see("lstm:l0", rows[20:])
    both = first.merged(second)
    assert both.rows == 60
    np.testing.assert_allclose(
        both.settled()["lstm:l0"].covariance.numpy(), np.cov(rows.numpy().T, bias=True), rtol=1e-10
    )


def test_of_large_passes_a_sample_without_bias(structure: Structure) -> None:
    torch.manual_seed(0)
    rows = torch.randn(4 * ROWS, 3, dtype=torch.float64)
    rows[:, 1] += rows[:, 0]
    window = Window(structure)
    for _ in range(100):
        window.see("lstm:l0", rows)
    assert window.rows == 100 * ROWS
    found = window.settled()["lstm:l0"]
    # The standard error of 204,800 draws is about 0.003 for the mean, and 0.006 for the covariance.
    np.testing.assert_allclose(found.mean.numpy(), rows.mean(0).numpy(), atol=0.015)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(rows.numpy().T, bias=True), atol=0.03)


def test_what_was_seen_of_the_units_that_stay(structure: Structure) -> None:
    """As if the others had never been there: mean, covariance, what consumers read, and moments by class."""
    rows = torch.randn(60, 3, dtype=torch.float64) + torch.arange(3)
    stay = [0, 2]
    window = Window(structure)
    window.see("lstm:l0", rows[:20])
    window.settled()
    window.see("lstm:l0", rows[20:])
    split = window.readings["head.weight", 1] = SplitMoments("head.weight", 3)
    split.update(rows)
    window.classes["lstm:l0"].update(rows, torch.eye(2)[torch.arange(60) % 2])
    cut = window.cut(shrunk(structure, {"lstm:l0": stay}), {"lstm:l0": stay})
    assert cut.rows == window.rows
    left = rows[:, stay].numpy()
    for moments in (cut.settled()["lstm:l0"], cut.readings["head.weight", 1].merged()):
        np.testing.assert_allclose(moments.mean.numpy(), left.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance.numpy(), np.cov(left.T, bias=True), rtol=1e-10)
    between = left[::2].mean(0) - left[1::2].mean(0)
    within = (left[::2].var(0) + left[1::2].var(0)) / 2
    np.testing.assert_allclose(cut.classes["lstm:l0"].separability(), between**2 / 4 / within, rtol=1e-10)
