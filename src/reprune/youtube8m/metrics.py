"""YouTube-8M's four metrics, vectorised and streaming: GAP@20, mAP, Hit@1 and PERR.

All four read only how the scores of a video are ranked and, for GAP and mAP, how scores compare between videos. Any
strictly increasing function of the scores gives the same values, so probabilities and logits both do.

Ties have one defined answer each, and none depends on the order in which videos arrive:

* Within a video, of equal scores the lower class index ranks first.
* Between videos, predictions with equal scores are in no order: average precision is its mean over all orders of them.
  (The starter kit draws one of these orders at random.)

Example:
    >>> metrics = VideoMetrics(classes=3862)
    >>> for scores, labels in batches:
    ...     metrics.update(scores, labels)
    >>> metrics.compute()
    {'gap': 0.8312, 'map': 0.4127, 'hit_at_1': 0.8655, 'perr': 0.7713}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

TOP_K = 20
"""How many predictions of every video count for GAP and mAP."""

Scores = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best predictions of some videos: flat arrays of equal length, video by video, best first.

    Attributes:
        scores: The score of each prediction.
        videos: Its row.
        classes: Its class.
        ranks: Its rank within the video, from 0.
    """

    scores: Scores
    videos: NDArray[np.int64]
    classes: NDArray[np.int64]
    ranks: NDArray[np.int64]


class VideoMetrics:
    """The four metrics over a stream of videos.

    * `gap`, global average precision: the `top_k` best predictions of every video in one pool, sorted by score; average
      precision of that list, where recall counts every positive label, also those outside the top.
    * `map`, mean average precision: the same average precision for each class alone (same pool, that class's
      predictions, all of its positives), averaged over the classes that have a positive. `top_k=None` pools all scores,
      which is the usual mAP and takes `classes / 20` times the memory. With at most 20 classes the two are the same.
    * `hit_at_1`: the fraction of videos whose best prediction is a positive.
    * `perr`, precision at equal recall rate: for a video with n positives, the fraction of positives among its n best
      predictions; averaged over videos. A video without positives counts as 0, here and in `hit_at_1`.

    The definitions are those of the YouTube-8M starter kit, except that its mAP is handed out as one number per class,
    classes without a positive included as 0, and that its PERR ignores scores that are not above 0.

    Memory: about 7 + bytes-per-score bytes for each of the pooled predictions, so about 220 bytes a video with float32.

    Args:
        classes: How many classes there are.
        top_k: How many predictions of every video to pool; None for all.

    Raises:
        ValueError: A number is not positive.
    """

    def __init__(self, classes: int, top_k: int | None = TOP_K) -> None:
        if classes < 1 or (top_k is not None and top_k < 1):
            raise ValueError(f"classes and top_k must be at least 1, not {classes} and {top_k}")
        self.classes = classes
        self.top_k = classes if top_k is None else min(top_k, classes)
        self.videos = 0
        """How many videos were seen."""
        self._hits_at_1 = 0
        self._perr_sum = 0.0
        self._positives = np.zeros(classes, np.int64)
        self._pool: list[tuple[Scores, NDArray[np.int32], Mask]] = []

    def update(self, scores: ArrayLike, labels: ArrayLike) -> None:
        """Take in a batch.

        Args:
            scores: One score per video and class, N × classes, finite.
            labels: N × classes; what is above 0 is a positive.

        Raises:
            ValueError: The shapes do not fit, or a score is NaN or infinite.
        """
        values, positive = _checked(scores, labels, self.classes)
        counts = np.count_nonzero(positive, axis=1)
        top = rank_top(values, max(self.top_k, int(counts.max(initial=0))))
        hits = positive[top.videos, top.classes]
        pooled = top.ranks < self.top_k
        self._pool.append((top.scores[pooled], top.classes[pooled].astype(np.int32), hits[pooled]))
        self._positives += np.bincount(np.nonzero(positive)[1], minlength=self.classes)
        self._hits_at_1 += hits_at_1(top, hits)
        self._perr_sum += perr_sum(top, hits, counts)
        self.videos += len(values)

    def merge(self, other: VideoMetrics) -> None:
        """Take in all that another instance has seen, for instance in another process. `other` is left as it is.

        Raises:
            ValueError: The two have different `classes` or `top_k`.
        """
        if (self.classes, self.top_k) != (other.classes, other.top_k):
            raise ValueError(
                f"cannot merge metrics of {other.classes} classes, top {other.top_k}, "
                f"into metrics of {self.classes} classes, top {self.top_k}"
            )
        self.videos += other.videos
        self._hits_at_1 += other._hits_at_1
        self._perr_sum += other._perr_sum
        self._positives += other._positives
        self._pool += other._pool

    def compute(self) -> dict[str, float]:
        """Return `gap`, `map`, `hit_at_1` and `perr` over everything seen, each from 0 to 1.

        Raises:
            ValueError: No video was seen.
        """
        if not self.videos:
            raise ValueError("no video was seen: call update with at least one before compute")
        scores, classes, hits = (np.concatenate(parts) for parts in zip(*self._pool, strict=True))
        return {
            "gap": global_average_precision(scores, hits, int(self._positives.sum())),
            "map": mean_average_precision(scores, classes, hits, self._positives),
            "hit_at_1": self._hits_at_1 / self.videos,
            "perr": self._perr_sum / self.videos,
        }


def gap(scores: ArrayLike, labels: ArrayLike, top_k: int = TOP_K) -> float:
    """Return the global average precision of one batch, N × classes. See `VideoMetrics`.

    Example:
        >>> gap([[0.9, 0.2], [0.4, 0.6]], [[1, 0], [1, 0]])
        0.8333333333333333
    """
    values, positive = _checked(scores, labels)
    top = rank_top(values, min(top_k, values.shape[1]))
    return global_average_precision(top.scores, positive[top.videos, top.classes], int(np.count_nonzero(positive)))


def global_average_precision(scores: Scores, hits: Mask, positives: int) -> float:
    """Return the average precision of one pool of predictions, of which `hits` are right, out of `positives` in all.

    Without positives it is 0.
    """
    pool = np.zeros(len(scores), np.int32)
    return float(_average_precisions(scores, pool, hits, np.array([positives]))[0])


def mean_average_precision(
    scores: Scores, classes: NDArray[np.int32], hits: Mask, positives: NDArray[np.int64]
) -> float:
    """Return the mean, over classes that have positives, of the average precision of each class's predictions.

    Without positives it is 0.
    """
    precisions = _average_precisions(scores, classes, hits, positives)
    return float(precisions[positives > 0].mean()) if positives.any() else 0.0


def hits_at_1(top: Ranking, hits: Mask) -> int:
    """Return how many videos have a positive as their best prediction."""
    return int(np.count_nonzero(hits[top.ranks == 0]))


def perr_sum(top: Ranking, hits: Mask, counts: NDArray[np.int64]) -> float:
    """Return the sum over videos of the fraction of positives among as many best predictions as there are positives.

    Args:
        top: Ranked predictions, at least `counts[v]` of every video v.
        hits: Whether each of them is right.
        counts: How many positives each video has.
    """
    recalled = hits & (top.ranks < counts[top.videos])
    return float((1 / counts[top.videos[recalled]]).sum())


def rank_top(scores: Scores, k: int) -> Ranking:
    """Find the k best scores of every video; of equal scores the lower class index is the better.

    Args:
        scores: N × classes, finite.
        k: From 1 to classes.
    """
    videos, classes = scores.shape
    # The k-th largest of maxima over disjoint sets of columns is at most the k-th largest score. A pass for the maxima
    # and a pass for what lies above is several times as fast as a partition, and leaves little more than k to sort.
    height = min(max(classes // (6 * k), 1), 32)
    width = classes // height
    maxima = scores[:, : height * width].reshape(videos, height, width).max(axis=1)
    bound = np.partition(maxima, width - k, axis=1)[:, width - k, None]
    chosen = np.flatnonzero(scores >= bound)

    # One row per video, its candidates in the order of their classes, which a stable sort keeps among equals.
    video = chosen // classes
    counts = np.bincount(video, minlength=videos)
    place = np.arange(len(chosen)) - np.repeat(np.cumsum(counts) - counts, counts)
    candidates = np.full((videos, counts.max(initial=k)), np.inf, scores.dtype)
    candidates[video, place] = -scores.reshape(-1)[chosen]
    best = np.argsort(candidates, axis=1, kind="stable")[:, :k]
    kept = chosen[best + (np.cumsum(counts) - counts)[:, None]].reshape(-1)
    return Ranking(scores.reshape(-1)[kept], kept // classes, kept % classes, np.tile(np.arange(k), videos))


def _average_precisions(
    scores: Scores, groups: NDArray[np.int32], hits: Mask, positives: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the average precision of every group of predictions, averaged over all orders of equal scores.

    A block of n equal scores with h hits, ranked after N predictions with H hits, puts a hit at each of its places with
    probability h / n; if there is one at its place i (from 0), then H + 1 + i (h − 1) / (n − 1) hits are expected up to
    and including it, out of N + i + 1 predictions. With n = 1 this is the usual precision at a hit.

    Args:
        scores: One per prediction.
        groups: The group of each prediction, an index into `positives`.
        hits: Whether each prediction is right.
        positives: How many positives each group has; a group that has none gets 0.
    """
    if not len(scores):
        return np.zeros(len(positives))
    order = np.lexsort((-scores, groups)) if len(positives) > 1 else np.argsort(-scores)
    scores, groups, hits = scores[order], groups[order], hits[order]

    new_group = np.r_[True, groups[1:] != groups[:-1]]
    block_start = np.flatnonzero(new_group | np.r_[True, scores[1:] != scores[:-1]])
    block_size = np.diff(np.r_[block_start, len(scores)])
    hits_before = np.r_[0, np.cumsum(hits)]  # the hits before each place, over all groups
    block_hits = hits_before[block_start + block_size] - hits_before[block_start]
    group_start = np.maximum.accumulate(np.where(new_group, np.arange(len(scores)), 0))[block_start]

    block = np.repeat(np.arange(len(block_start)), block_size)
    place = np.arange(len(scores)) - block_start[block]
    expected = (
        (hits_before[block_start] - hits_before[group_start])[block]
        + 1
        + place * ((block_hits - 1) / np.maximum(block_size - 1, 1))[block]
    )
    precision = expected / ((block_start - group_start)[block] + place + 1)
    summed = np.bincount(groups, precision * (block_hits / block_size)[block], minlength=len(positives))
    return np.asarray(summed / np.maximum(positives, 1))


def _checked(scores: ArrayLike, labels: ArrayLike, classes: int | None = None) -> tuple[Scores, Mask]:
    values = np.asarray(scores)
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    positive = np.asarray(labels) > 0
    if values.ndim != 2 or positive.shape != values.shape or (classes is not None and values.shape[1] != classes):
        raise ValueError(
            f"scores and labels must both be N × {'classes' if classes is None else classes}, "
            f"not {values.shape} and {positive.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError("scores hold NaN or infinite values: the model has diverged, or divides by zero")
    return values, positive
