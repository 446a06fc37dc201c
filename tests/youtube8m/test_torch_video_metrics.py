"""The torchmetrics versions against the NumPy ones, in one process and in two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from reprune.youtube8m.metrics import VideoMetrics
from reprune.youtube8m.torch_metrics import (
    GlobalAveragePrecision,
    HitAt1,
    MeanAveragePrecision,
    PrecisionAtEqualRecall,
    video_metrics,
)

CLASSES = 50
SINGLE = {
    "gap": GlobalAveragePrecision,
    "map": MeanAveragePrecision,
    "hit_at_1": HitAt1,
    "perr": PrecisionAtEqualRecall,
}


def generated(levels: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    scores = torch.tensor(rng.integers(levels, size=(60, CLASSES)) / levels, dtype=dtype)
    return scores, torch.tensor(rng.random((60, CLASSES)) < 0.08)


def expected(*batches: tuple[torch.Tensor, torch.Tensor], top_k: int | None = 20) -> dict[str, float]:
    metrics = VideoMetrics(CLASSES, top_k)
    for scores, labels in batches:
        metrics.update(scores.double().numpy(), labels.numpy())
    return metrics.compute()


def values(metrics: MetricCollection) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.compute().items()}


@pytest.mark.parametrize("levels", [2, 10, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("top_k", [5, 20, None])
def test_equal_to_numpy(levels, dtype, top_k):
    scores, labels = generated(levels, dtype=dtype)
    metrics = video_metrics(CLASSES, top_k)
    for start in range(0, 60, 7):
        metrics.update(scores[start : start + 7], labels[start : start + 7].to(torch.int64))
    assert values(metrics) == pytest.approx(expected((scores, labels), top_k=top_k), abs=1e-6)
    metrics.reset()
    metrics.update(scores[:9], labels[:9])
    assert values(metrics) == pytest.approx(expected((scores[:9], labels[:9]), top_k=top_k), abs=1e-6)


@pytest.mark.parametrize("name", SINGLE)
def test_states_of_two_processes_merge(name):
    batches = [generated(5, 1), generated(5, 2), generated(5, 3)]
    first, second = SINGLE[name](CLASSES), SINGLE[name](CLASSES)
    first.update(*batches[0])
    second.update(*batches[1])
    second.update(*batches[2])
    first.merge_state(second)
    assert float(first.compute()) == pytest.approx(expected(*batches)[name], abs=1e-6)


def test_hit_at_1_and_perr_stay_apart_even_if_they_start_equal():
    metrics = video_metrics(CLASSES)
    one_label = torch.zeros(3, CLASSES, dtype=torch.bool)
    one_label[:, 0] = True  # with one label each, the two are the same
    first = (torch.rand(3, CLASSES, generator=torch.Generator().manual_seed(0)), one_label)
    metrics.update(*first)
    second = generated(2**20)
    metrics.update(*second)
    assert values(metrics) == pytest.approx(expected(first, second), abs=1e-6)


def test_double_precision_tells_scores_apart():
    scores, labels = torch.tensor([[0.5, 0.5 + 1e-12]], dtype=torch.float64), torch.tensor([[0, 1]])
    metrics = video_metrics(2)
    metrics.update(scores, labels)
    assert values(metrics) == dict.fromkeys(SINGLE, 1.0)
    metrics.reset()
    metrics.update(scores.float(), labels)
    assert values(metrics) == {"gap": 0.75, "map": 1.0, "hit_at_1": 0.0, "perr": 0.0}


def test_a_single_class():
    metrics = video_metrics(1)
    metrics.update(torch.zeros(0, 1), torch.zeros(0, 1))
    metrics.update(torch.tensor([[0.5], [0.25]]), torch.tensor([[1], [0]]))
    assert values(metrics) == {"gap": 1.0, "map": 1.0, "hit_at_1": 0.5, "perr": 0.5}


@pytest.mark.parametrize("name", SINGLE)
def test_refusals(name):
    metric = SINGLE[name](3)
    assert metric.higher_is_better
    assert not metric.is_differentiable
    assert SINGLE[name](1).classes == 1
    with pytest.raises(ValueError, match=r"N × 3, not \(2, 4\)"):
        metric.update(torch.ones(2, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match="NaN or infinite"):
        metric.update(torch.full((1, 3), torch.nan), torch.ones(1, 3))
    with pytest.raises(ValueError, match="at least 1"):
        SINGLE[name](0)
    if name in ("gap", "map"):
        assert SINGLE[name](3, 1).top_k == 1
        with pytest.raises(ValueError, match="at least 1"):
            SINGLE[name](3, 0)
    metric.update(torch.ones(0, 3), torch.ones(0, 3))
    with pytest.raises(ValueError, match="no video was seen"):
        metric.compute()
