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


def responses(model: Stack) -> np.ndarray:
    """What the third convolution reads of the second one's channels, at every place (images × places × channels)."""
    with torch.no_grad():
        found = [F.relu(model.second(F.relu(model.first(x)))) for x in batches()]
    return torch.cat(found).flatten(2).transpose(1, 2).numpy()


def test_pfa_keeps_the_energy_and_drops_the_most_correlated(model: Stack) -> None:
    plan = reprune.plan(model, batches(), None, method="pfa-en", scope="all")
    rows = responses(model).reshape(-1, 6)
    spectrum = np.sort(np.linalg.eigvalsh(np.cov(rows.T)))[::-1]
    count = int(np.argmax(np.cumsum(spectrum) / spectrum.sum() >= 0.95)) + 1
    left = list(range(6))
    while len(left) > count:
        correlation = np.abs(np.corrcoef(rows[:, left].T)) - np.eye(len(left))
        left.pop(int(np.argmax(correlation.sum(1))))
    assert count < 6
    assert plan.kept["second:channels"] == left


def test_class_separability_counts_every_place_for_the_class_of_its_image(model: Stack) -> None:
    classes = torch.tensor([0, 1, 2, 1])
    calibration = reprune.calibrate(
        model, batches(), methods=["class-separability"], labels=lambda batch: classes, scope="all"
    )
    plan = calibration.plan(0.5, method="class-separability")
    rows, belong = responses(model), np.tile(classes.numpy(), 3)
    groups = [rows[belong == index].reshape(-1, 6) for index in range(3)]
    sizes, means = np.array([len(group) for group in groups]), np.array([group.mean(0) for group in groups])
    between = sizes @ (means - sizes @ means / sizes.sum()) ** 2
    within = sum(((group - group.mean(0)) ** 2).sum(0) for group in groups)
    np.testing.assert_allclose(plan.diagnostics.scores["second:channels"], between / within, rtol=1e-9)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_filter_that_others_make_up_is_folded_into_all_taps(model: Stack, kind: type[nn.Module]) -> None:
    model.third = kind(6, 8, 3, padding=1).double()
    with torch.no_grad():
        model.second.weight[5] = 2 * model.second.weight[1]
        model.second.bias[5] = 2 * model.second.bias[1]
    result = reprune.prune(
        model, batches(), method="reconstruct", counts={"second*": 5}, include=["second*"], scope="all"
    )
    x = batches()[0]
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), model(x), rtol=1e-5, atol=1e-6)
    assert result.model.second.out_channels == 5
    (gone,) = set(range(6)) - set(result.plan.kept["second:channels"])
    assert gone in (1, 5)


def test_magnitude_is_the_length_of_filter_and_of_all_that_reads_it(model: Stack) -> None:
    plan = reprune.plan(model, batches(), 0.5, method="magnitude", scope="all", include=["second*"])
    made = (filters(model.second) ** 2).sum(1)
    read = (model.third.weight.detach().numpy() ** 2).sum((0, 2, 3))
    assert plan.kept["second:channels"] == sorted(np.argsort(np.sqrt(made + read))[-3:].tolist())
