"""The metrics against plain loops over videos, predictions and, where scores tie, orders."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprune.youtube8m.metrics import VideoMetrics, gap, rank_top

NAMES = ["gap", "map", "hit_at_1", "perr"]


def ranked(scores) -> list[int]:
    """Classes of one video, best first: by score, then by index."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


def average_precision(pool: list[tuple[float, bool]], positives: int) -> float:
    """Mean over all orders of equal scores, block by block: the mean of hypergeometric expectations, in fractions."""
    if not positives:
        return 0.0
    total, seen, hits = Fraction(0), 0, 0
    for _, block in itertools.groupby(sorted(pool, key=lambda pair: -pair[0]), key=lambda pair: pair[0]):
        right = [hit for _, hit in block]
        n, h = len(right), sum(right)
        for place in range(n):
            # A hit here, `before` more of the block's at its earlier places: so many of the comb(n, h) ways.
            ways = sum(
                math.comb(place, before) * math.comb(n - 1 - place, h - 1 - before) * (hits + before + 1)
                for before in range(h)
            )
            total += Fraction(ways, math.comb(n, h) * (seen + place + 1))
        seen, hits = seen + n, hits + h
    return float(total / positives)


def plain(scores, labels, top_k=20) -> dict[str, float]:
    videos, classes = scores.shape
    pools: list[list[tuple[float, bool]]] = [[] for _ in range(classes)]
    hit, perr = 0, 0.0
    for values, truth in zip(scores, labels, strict=True):
        order = ranked(values)
        hit += bool(truth[order[0]])
        wanted = int(truth.sum())
        if wanted:
            perr += sum(bool(truth[index]) for index in order[:wanted]) / wanted
        for index in order[:top_k]:
            pools[index].append((float(values[index]), bool(truth[index])))
    positives = labels.sum(axis=0)
    per_class = [average_precision(pools[index], int(positives[index])) for index in range(classes) if positives[index]]
    return {
        "gap": average_precision(list(itertools.chain(*pools)), int(positives.sum())),
        "map": sum(per_class) / len(per_class) if per_class else 0.0,
        "hit_at_1": hit / videos,
        "perr": perr / videos,
    }


def computed(scores, labels, top_k=20) -> dict[str, float]:
    metrics = VideoMetrics(scores.shape[1], top_k)
    metrics.update(scores, labels)
    return metrics.compute()


@st.composite
def predictions(draw):
    videos, classes = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 5, 100, 2**53]))  # few levels, many ties
    scores = rng.integers(levels, size=(videos, classes)) / levels
    labels = rng.random((videos, classes)) < draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    return scores.astype(draw(st.sampled_from([np.float64, np.float32]))), labels


@settings(max_examples=100, deadline=None)
@given(predictions(), st.sampled_from([1, 3, 20, None]))
def test_equal_to_the_plain_reference(data, top_k):
    scores, labels = data
    expected = plain(scores, labels, top_k or scores.shape[1])
    assert computed(scores, labels, top_k) == pytest.approx(expected, abs=1e-12)
    if top_k:
        assert gap(scores, labels, top_k) == pytest.approx(expected["gap"], abs=1e-12)


def test_ties_count_as_the_mean_over_their_orders():
    scores = np.array([[0.5, 0.5, 0.9], [0.5, 0.1, 0.5]])
    labels = np.array([[1, 0, 1], [0, 0, 1]], bool)
    pairs = list(zip(scores.ravel(), labels.ravel(), strict=True))
    means = []
    for order in itertools.permutations(pairs):
        if [score for score, _ in order] == sorted(scores.ravel(), reverse=True):
            precisions = [
                sum(hit for _, hit in order[: place + 1]) / (place + 1) for place, (_, hit) in enumerate(order) if hit
            ]
            means.append(sum(precisions) / labels.sum())
    assert len(means) > 20
    assert gap(scores, labels) == pytest.approx(np.mean(means), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(predictions(), st.randoms(use_true_random=False))
def test_no_order_of_arrival_and_no_split_matters(data, random):
    scores, labels = data
    whole = computed(scores, labels)
    order = list(range(len(scores)))
    random.shuffle(order)
    parts = [VideoMetrics(scores.shape[1]) for _ in range(3)]
    for index in order:
        random.choice(parts).update(scores[[index]], labels[[index]])
    parts[0].merge(parts[1])
    parts[2].merge(parts[0])
    merged = parts[2].compute()
    assert [merged[name] for name in ("gap", "map", "hit_at_1")] == [whole[name] for name in ("gap", "map", "hit_at_1")]
    assert merged["perr"] == pytest.approx(whole["perr"], abs=1e-15)
    assert parts[2].videos == len(scores)


def test_known_values():
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.7, 0.6]])
    labels = np.array([[1, 0, 0], [1, 0, 1]])
    # Sorted: .9 hit, .8, .7, .6 hit, .2 hit, .1 → (1/1 + 2/4 + 3/5) / 3
    assert computed(scores, labels) == pytest.approx(
        {"gap": 2.1 / 3, "map": (1 + 1) / 2, "hit_at_1": 0.5, "perr": (1 + 0.5) / 2}, abs=1e-15
    )
    # Only each video's best: .9 hit, .7; all three positives still count.
    assert computed(scores, labels, top_k=1) == pytest.approx(
        {"gap": 1 / 3, "map": (1 / 2 + 0) / 2, "hit_at_1": 0.5, "perr": 0.75}, abs=1e-15
    )


def test_only_ranks_count():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(30, 40))
    labels = rng.random(logits.shape) < 0.1
    assert computed(logits, labels) == computed(1 / (1 + np.exp(-logits)), labels)
    assert computed(np.round(logits * 8).astype(int), labels) == computed(np.round(logits * 8), labels)


def test_labels_of_any_type():
    scores = np.random.default_rng(0).random((5, 30))
    labels = scores > 0.8
    assert computed(scores, labels) == computed(scores, labels.astype(np.float32)) == computed(scores, labels.tolist())


@settings(max_examples=60, deadline=None)
@given(predictions(), st.integers(1, 40))
def test_rank_top_is_a_stable_sort(data, k):
    scores, _ = data
    k = min(k, scores.shape[1])
    top = rank_top(scores, k)
    assert top.videos.tolist() == np.repeat(np.arange(len(scores)), k).tolist()
    assert top.ranks.tolist() == list(range(k)) * len(scores)
    assert top.classes.reshape(-1, k).tolist() == [ranked(values)[:k] for values in scores]
    assert (top.scores == scores[top.videos, top.classes]).all()


def test_rank_top_of_many_classes_with_a_remainder():
    scores = np.random.default_rng(0).integers(200, size=(20, 3862)) / 200
    assert rank_top(scores, 20).classes.reshape(-1, 20).tolist() == [ranked(values)[:20] for values in scores]


def test_no_positives_and_no_videos():
    assert computed(np.ones((2, 3)), np.zeros((2, 3))) == dict.fromkeys(NAMES, 0.0)
    metrics = VideoMetrics(3)
    metrics.update(np.ones((0, 3)), np.ones((0, 3)))
    with pytest.raises(ValueError, match="no video was seen"):
        metrics.compute()
    assert gap(np.ones((0, 3)), np.ones((0, 3))) == 0.0
    metrics.update(np.eye(3), np.eye(3))
    assert metrics.compute() == dict.fromkeys(NAMES, 1.0)


@pytest.mark.parametrize(
    ("scores", "labels", "complaint"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), r"N × 3, not \(2, 3\) and \(2, 4\)"),
        (np.ones((2, 4)), np.ones((2, 4)), r"N × 3, not \(2, 4\)"),
        (np.ones(3), np.ones(3), "N × 3"),
        ([[1, np.nan, 0]], np.ones((1, 3)), "NaN or infinite"),
        ([[1, np.inf, 0]], np.ones((1, 3)), "NaN or infinite"),
    ],
)
def test_what_cannot_be_measured_is_refused(scores, labels, complaint):
    with pytest.raises(ValueError, match=complaint):
        VideoMetrics(3).update(scores, labels)


def test_what_does_not_fit_together_is_not_merged():
    with pytest.raises(ValueError, match="top 2, into metrics of 3 classes, top 3"):
        VideoMetrics(3).merge(VideoMetrics(3, top_k=2))
    for classes, top_k in [(0, 20), (3, 0)]:
        with pytest.raises(ValueError, match="at least 1"):
            VideoMetrics(classes, top_k)
