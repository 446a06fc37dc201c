"""What the papers on filters say of a small stack of convolutions, recomputed in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import reprune
from reprune.core.methods import Method

FPGM = Method(allocation="uniform", criterion="geometric-median")


class Stack(nn.Module):
    """Two plain convolutions, and one whose filters go with those of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.third, self.out = nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.out((x + self.third(F.relu(self.second(x)))).mean((2, 3)))


@pytest.fixture
def model() -> Stack:
    torch.manual_seed(0)
    return Stack().double().eval()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 2, 6, 6, generator=generator, dtype=torch.float64) for _ in range(3)]


def filters(convolution: nn.Conv2d) -> np.ndarray:
    return convolution.weight.detach().numpy().reshape(convolution.out_channels, -1)


def distances(points: np.ndarray) -> np.ndarray:
    """Σ_v ‖F_u − F_v‖₂ of every filter u (He et al. 2019, eq. 7)."""
    return np.array([sum(np.sqrt(((u - v) ** 2).sum()) for v in points) for u in points])


def test_fpgm_removes_the_filters_nearest_the_geometric_median(model: Stack) -> None:
    plan = reprune.plan(model, batches(), 0.5, method=FPGM, scope="all")
    second = distances(filters(model.second))
    assert plan.kept["second:channels"] == sorted(np.argsort(second)[-3:].tolist())
    # Filters whose channels are added go together: by what both are worth, each against its own mean.
    first, third = distances(filters(model.first)), distances(filters(model.third))
    both = first / first.mean() + third / third.mean()
    assert plan.kept["first:channels"] == plan.kept["third:channels"] == sorted(np.argsort(both)[-4:].tolist())


def test_magnitude_is_the_length_of_filter_and_of_all_that_reads_it(model: Stack) -> None:
    plan = reprune.plan(model, batches(), 0.5, method="magnitude", scope="all", include=["second*"])
    made = (filters(model.second) ** 2).sum(1)
    read = (model.third.weight.detach().numpy() ** 2).sum((0, 2, 3))
    assert plan.kept["second:channels"] == sorted(np.argsort(np.sqrt(made + read))[-3:].tolist())
