"""YouTube-8M's metrics for torchmetrics: updated on the model's device, synchronised across processes.

The values are those of `reprune.youtube8m.metrics`, which says how each is defined and what ties do.

Example:
    >>> metrics = video_metrics(classes=3862)
    >>> metrics.update(scores, labels)
    >>> metrics.compute()
    {'gap': tensor(0.8312), 'map': tensor(0.4127), 'hit_at_1': tensor(0.8655), 'perr': tensor(0.7713)}
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from reprune.youtube8m.metrics import TOP_K, Scores, global_average_precision, mean_average_precision

_NO_VIDEO = "no video was seen: call update with at least one before compute"


def video_metrics(classes: int, top_k: int | None = TOP_K) -> MetricCollection:
    """Return `gap`, `map`, `hit_at_1` and `perr` as one collection, in which GAP and mAP share their pool.

    Raises:
        ValueError: A number is not positive.
    """
    return MetricCollection(
        {
            "gap": GlobalAveragePrecision(classes, top_k),
            "map": MeanAveragePrecision(classes, top_k),
            "hit_at_1": HitAt1(classes),
            "perr": PrecisionAtEqualRecall(classes),
        },
        # Left to itself, torchmetrics merges metrics whose states are equal after one batch: Hit@1's and PERR's can be.
        compute_groups=[["gap", "map"], ["hit_at_1"], ["perr"]],
    )


class _PooledMetric(Metric):
    """The best `top_k` predictions of every video, in one pool.

    A prediction is its score and the code 2 · class + hit, a float like the score: torchmetrics puts an empty float
    tensor where a process saw no video, and all processes must gather one type.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]
    codes: list[Tensor]
    positives: Tensor

    def __init__(self, classes: int, top_k: int | None = TOP_K) -> None:
        if classes < 1 or (top_k is not None and top_k < 1):
            raise ValueError(f"classes and top_k must be at least 1, not {classes} and {top_k}")
        super().__init__()
        self.classes = classes
        self.top_k = classes if top_k is None else min(top_k, classes)
        for name in ("scores", "codes"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("positives", torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Take in a batch: scores N × classes, finite; labels N × classes, above 0 where positive.

        Raises:
            ValueError: The shapes do not fit, or a score is NaN or infinite.
        """
        scores, positive = _checked(scores, labels, self.classes)
        best = _best(scores, self.top_k)
        self.scores.append(scores.gather(1, best).flatten())
        self.codes.append((2 * best + positive.gather(1, best)).flatten().float())
        self.positives += positive.sum(dim=0)

    def _pool(self) -> tuple[Scores, NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]:
        """Return scores, classes and hits of the pool, and the number of positives per class."""
        if not len(self.scores) or not dim_zero_cat(self.scores).numel():
            raise ValueError(_NO_VIDEO)
        scores, codes = (dim_zero_cat(state).cpu().numpy() for state in (self.scores, self.codes))
        codes = codes.astype(np.int32)
        return scores, codes // 2, codes % 2 == 1, self.positives.cpu().numpy()

    @abstractmethod
    def compute(self) -> Tensor:
        """Return the metric over everything seen."""


class GlobalAveragePrecision(_PooledMetric):
    """GAP@20, as `VideoMetrics` defines it.

    Args:
        classes: How many classes there are.
        top_k: How many predictions of every video to pool; None for all.
    """

    def compute(self) -> Tensor:
        """Return the metric over everything seen, from 0 to 1."""
        scores, _, hits, positives = self._pool()
        return torch.tensor(global_average_precision(scores, hits, int(positives.sum())), device=self.device)


class MeanAveragePrecision(_PooledMetric):
    """mAP over the pooled predictions, as `VideoMetrics` defines it.

    Args:
        classes: How many classes there are.
        top_k: How many predictions of every video to pool; None for all.
    """

    def compute(self) -> Tensor:
        """Return the metric over everything seen, from 0 to 1."""
        return torch.tensor(mean_average_precision(*self._pool()), device=self.device)


class _AveragedMetric(Metric):
    """A number per video, averaged over videos."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    videos: Tensor

    def __init__(self, classes: int) -> None:
        if classes < 1:
            raise ValueError(f"classes must be at least 1, not {classes}")
        super().__init__()
        self.classes = classes
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("videos", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Take in a batch: scores N × classes, finite; labels N × classes, above 0 where positive.

        Raises:
            ValueError: The shapes do not fit, or a score is NaN or infinite.
        """
        scores, positive = _checked(scores, labels, self.classes)
        self.total += self._per_video(scores, positive).sum(dtype=torch.float64)
        self.videos += len(scores)

    def compute(self) -> Tensor:
        """Return the mean over all videos seen, from 0 to 1."""
        if not self.videos:
            raise ValueError(_NO_VIDEO)
        return (self.total / self.videos).float()

    @abstractmethod
    def _per_video(self, scores: Tensor, positive: Tensor) -> Tensor:
        """Return the number of each video."""


class HitAt1(_AveragedMetric):
    """Hit@1, as `VideoMetrics` defines it.

    Args:
        classes: How many classes there are.
    """

    def _per_video(self, scores: Tensor, positive: Tensor) -> Tensor:
        return positive.gather(1, _best(scores, 1)).squeeze(1)


class PrecisionAtEqualRecall(_AveragedMetric):
    """PERR, as `VideoMetrics` defines it.

    Args:
        classes: How many classes there are.
    """

    def _per_video(self, scores: Tensor, positive: Tensor) -> Tensor:
        counts = positive.sum(dim=1)
        most = max(int(counts.max()), 1) if len(counts) else 1
        ranked_hits = positive.gather(1, _best(scores, most))
        recalled = (ranked_hits & (torch.arange(most, device=counts.device) < counts[:, None])).sum(dim=1)
        return recalled.double() / counts.clamp(min=1)


def _best(scores: Tensor, k: int) -> Tensor:
    """Return the classes of the k best scores per row, best first; of equal scores the lower class is the better."""
    values, classes = torch.topk(scores, k, dim=1)
    if bool(((scores >= values[:, -1:]).sum(dim=1) > k).any()):  # topk chose among equals as it liked
        return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]
    classes = classes.sort(dim=1).values
    return classes.gather(1, torch.sort(scores.gather(1, classes), dim=1, descending=True, stable=True).indices)


def _checked(scores: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    if scores.ndim != 2 or scores.shape != labels.shape or scores.shape[1] != classes:
        raise ValueError(
            f"scores and labels must both be N × {classes}, not {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    # NumPy has no bfloat16, and half precision goes into float32 without loss.
    scores = scores.detach().to(torch.float64 if scores.dtype == torch.float64 else torch.float32)
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores hold NaN or infinite values: the model has diverged, or divides by zero")
    return scores, labels > 0
