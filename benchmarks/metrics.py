"""GAP@20: ours against a loop over videos and predictions in the manner of the YouTube-8M starter kit.

    python benchmarks/metrics.py [--videos 2000] [--classes 3862]

Prints both values and the median time of each over several alternating runs.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
import time
from collections.abc import Callable

import numpy as np

from reprune.youtube8m.metrics import VideoMetrics, gap


def gap_by_loop(scores: np.ndarray, labels: np.ndarray, top_k: int = 20) -> float:
    """What the starter kit goes through: triplets per video, lists per class, a heap, a shuffle, a sort, a loop."""
    classes = scores.shape[1]
    triplets: list[tuple[int, float, float]] = []
    for video_scores, video_labels in zip(scores, labels, strict=True):
        best = np.argpartition(video_scores, -top_k)[-top_k:]
        triplets += [(index, video_scores[index], video_labels[index]) for index in best]
    by_class: list[list[tuple[float, float]]] = [[] for _ in range(classes)]
    for index, score, label in triplets:
        by_class[index].append((score, label))
    positives = sum(np.sum(labels[:, index]) for index in range(classes))

    heap: list[tuple[float, float]] = []
    for predictions in by_class:
        for prediction in predictions:
            heapq.heappush(heap, prediction)
    random.Random(0).shuffle(heap)
    hits, total = 0.0, 0.0
    for position, index in enumerate(sorted(range(len(heap)), key=lambda i: heap[i][0], reverse=True), start=1):
        if heap[index][1] > 0:
            hits += 1
            total += hits / position
    return float(total / positives)


def ours_streaming(scores: np.ndarray, labels: np.ndarray) -> float:
    metrics = VideoMetrics(scores.shape[1])
    for start in range(0, len(scores), 160):
        metrics.update(scores[start : start + 160], labels[start : start + 160])
    return metrics.compute()["gap"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=3862)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()

    # Distinct scores, exact in float32: among equal ones the loop draws an order by lot.
    rng = np.random.default_rng(0)
    shape = (options.videos, options.classes)
    scores = (rng.permutation(options.videos * options.classes) * 2.0**-24).astype(np.float32).reshape(shape)
    labels = rng.random(shape) < 3.4 / options.classes
    scores[labels & (rng.random(shape) < 0.6)] += 0.5

    ways: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "loop over videos": gap_by_loop,
        "gap": gap,
        "VideoMetrics, all four metrics in batches of 160": ours_streaming,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    values = {}
    for _ in range(options.runs):
        for name, way in ways.items():
            started = time.perf_counter()
            values[name] = way(scores, labels)
            times[name].append(time.perf_counter() - started)

    base = statistics.median(times["loop over videos"])
    print(f"GAP@20 of {options.videos} videos × {options.classes} classes, median of {options.runs} runs")
    for name in ways:
        median = statistics.median(times[name])
        print(f"  {name:<50} {median * 1e3:8.1f} ms  {base / median:6.1f}×  value {values[name]:.12f}")
    spread = max(values.values()) - min(values.values())
    print(f"  largest difference between the values: {spread:.1e}")


if __name__ == "__main__":
    main()
