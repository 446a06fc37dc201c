"""Filters of a small residual network, trained on scikit-learn's images of digits, as FPGM and PFA define them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import reprune
from reprune.core.methods import Method
from tests.helpers.torch_oracle import check_oracle

STREAM = ("stem:channels", "blocks.0.second:channels", "blocks.1.second:channels")
INNER = ("blocks.0.first:channels", "blocks.1.first:channels")


class Block(nn.Module):
    """Two normalised convolutions and a way around them."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, inner, 3, padding=1), nn.Conv2d(inner, channels, 3, padding=1)
        self.norms = nn.ModuleList((nn.BatchNorm2d(inner), nn.BatchNorm2d(channels)))

    def between(self, x: Tensor) -> Tensor:
        return F.relu(self.norms[0](self.first(x)))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norms[1](self.second(self.between(x))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.blocks, self.out = nn.Sequential(Block(8, 12), Block(8, 10)), nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.out(F.max_pool2d(x, 2).flatten(1))


def digits() -> tuple[Tensor, Tensor]:
    """1,797 images of 8 × 8 places, and which digit each shows."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images).view(-1, 1, 8, 8) / 16, torch.tensor(labels)


@cache
def trained() -> Residual:
    """The network after two passes over all images but the last 297, in double precision."""
    torch.manual_seed(0)
    model, (images, labels) = Residual().double(), digits()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for chosen in [*torch.randperm(1500).split(50), *torch.randperm(1500).split(50)]:
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def batches() -> list[Tensor]:
    return list(digits()[0][:200].split(100))


def distances(model: nn.Module, layer: str) -> np.ndarray:
    """Σ_v ‖F_u − F_v‖₂ of every filter (He et al. 2019, eq. 7), a filter being all its weights."""
    filters = model.get_submodule(layer.removesuffix(":channels")).weight.detach().flatten(1).numpy()  # type: ignore[operator, union-attr]
    return np.linalg.norm(filters[:, None] - filters[None], axis=2).sum(1)


def largest(scores: np.ndarray, count: int) -> list[int]:
    return sorted(np.argsort(scores)[-count:].tolist())


def test_fpgm_removes_the_filters_nearest_the_geometric_median() -> None:
    model = trained()
    fpgm = Method(allocation="uniform", criterion="geometric-median")
    plan = reprune.plan(model, batches(), 0.5, method=fpgm, scope="all")
    for layer in INNER:
        scores = distances(model, layer)
        assert plan.kept[layer] == largest(scores, len(scores) // 2)
    # What is added up goes together: each filter by its distances against those of its own convolution.
    stream = sum(distances(model, layer) / distances(model, layer).mean() for layer in STREAM)
    assert all(plan.kept[layer] == largest(np.asarray(stream), 4) for layer in STREAM)


def test_pfa_keeps_as_many_filters_as_the_energy_asks_for_and_drops_the_most_correlated() -> None:
    model = trained()
    plan = reprune.plan(model, batches(), None, method="pfa-en", scope="all")
    reach: list[Callable[[Tensor], Tensor]] = [
        lambda x: model.blocks[0].between(F.relu(model.norm(model.stem(x)))),  # type: ignore[operator]
        lambda x: model.blocks[1].between(model.blocks[0](F.relu(model.norm(model.stem(x))))),  # type: ignore[operator]
    ]
    for layer, respond in zip(INNER, reach, strict=True):
        with torch.no_grad():
            rows = torch.cat([respond(x).movedim(1, -1).flatten(0, 2) for x in batches()]).numpy()
        spectrum = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
        count = int(np.argmax(np.cumsum(spectrum) / spectrum.sum() >= 0.95)) + 1
        left = [unit for unit in range(rows.shape[1]) if rows[:, unit].std() > 0]
        while len(left) > count:
            correlations = np.abs(np.corrcoef(rows[:, left].T)) - np.eye(len(left))
            left.pop(int(np.argmax(correlations.sum(1))))
        assert 1 < count < rows.shape[1]
        assert plan.kept[layer] == left


def test_it_reads_digits_it_has_not_seen_and_smaller_ones_are_exact() -> None:
    model, (images, labels) = trained(), digits()
    with torch.no_grad():
        assert float((model(images[1500:]).argmax(1) == labels[1500:]).double().mean()) > 0.85
    plan = reprune.plan(model, batches(), 0.5, method="magnitude", scope="all")
    check_oracle(model, plan, images[1500:1530])
