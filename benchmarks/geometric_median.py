"""Geometric-median scores of a large LSTM layer: reprune against `scipy.spatial.distance.cdist`, summed.

Both sides run in turn on the same weights, in one process; medians are printed, with the largest relative difference of
the scores. The second row makes every tenth unit a near copy of its neighbour, which a Gram matrix in single precision
cannot tell apart.

    python benchmarks/geometric_median.py [--units 1024] [--weights 8704] [--repeat 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from reprune.core.criteria.geometric_median import distance_sums

Scores = NDArray[np.float64]


def by_scipy(points: NDArray[np.float32]) -> Scores:
    return np.asarray(cdist(points, points).sum(axis=1))


def timed(run: Callable[[NDArray[np.float32]], Scores], points: NDArray[np.float32]) -> tuple[float, Scores]:
    start = time.perf_counter()
    scores = run(points)
    return time.perf_counter() - start, scores


def compare(name: str, points: NDArray[np.float32], repeat: int) -> None:
    ours, theirs = [], []
    for _ in range(repeat):
        seconds, expected = timed(by_scipy, points)
        theirs.append(seconds)
        seconds, scores = timed(distance_sums, points)
        ours.append(seconds)
    slow, fast = statistics.median(theirs), statistics.median(ours)
    difference = float(np.max(np.abs(scores / expected - 1)))
    print(f"{name:<16} {slow:>9.3f} s {fast:>9.3f} s {slow / fast:>7.1f}x {difference:>12.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=1024)
    parser.add_argument("--weights", type=int, default=8704, help="incoming gate weights per unit")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    points = rng.normal(size=(options.units, options.weights)).astype(np.float32)
    near = points.copy()
    near[1::10] = near[0::10][: len(near[1::10])] + 1e-5 * rng.normal(size=near[1::10].shape).astype(np.float32)

    distance_sums(points[:64])  # the first product starts the threads
    print(f"{options.units} units x {options.weights} weights, median of {options.repeat} runs in turn")
    print(f"{'':<16} {'cdist':>11} {'reprune':>11} {'faster':>8} {'difference':>12}")
    compare("distinct units", points, options.repeat)
    compare("near duplicates", near, options.repeat)


if __name__ == "__main__":
    main()
