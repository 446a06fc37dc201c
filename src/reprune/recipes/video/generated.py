"""Videos made up in YouTube-8M's format, whose classes differ only in the order of what happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from math import factorial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reprune.youtube8m.records import Record, write_records

FEATURES: Mapping[str, int] = {"rgb": 32, "audio": 16}
SCENES = 3
CLASSES = factorial(SCENES)
LONGEST = 36


def write_shards(
    folder: Path,
    *,
    train: int,
    validate: int,
    shards: int = 4,
    scenes: int = SCENES,
    noise: float = 0.8,
    seed: int = 0,
) -> None:
    """Write `train00.tfrecord` … and `validate00.tfrecord`.

    Every video shows the same scenes, each for a random number of frames and under noise; its one label says in which
    order. Averaged over time, all classes look the same.

    Args:
        folder: Where to; it is made when it does not exist.
        train: Number of videos to train on.
        validate: Number of videos to measure on.
        shards: Number of files of the first kind.
        scenes: Scenes of each video; the classes are their orders.
        noise: Standard deviation of the noise on every feature; the scenes' own is 0.6.
        seed: Seed of everything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    means = rng.normal(0.0, 0.6, (scenes, sum(FEATURES.values())))
    for shard in range(shards):
        videos = _videos(f"t{shard:02d}", train // shards, means, noise, rng)
        write_records(folder / f"train{shard:02d}.tfrecord", videos, FEATURES)
    write_records(folder / "validate00.tfrecord", _videos("v00", validate, means, noise, rng), FEATURES)


def _videos(
    prefix: str, number: int, means: NDArray[np.float64], noise: float, rng: np.random.Generator
) -> Iterator[Record]:
    orders = list(permutations(range(len(means))))
    for index in range(number):
        label = int(rng.integers(len(orders)))
        lengths = rng.integers(4, LONGEST // len(means) + 1, len(means))
        frames = np.repeat(means[list(orders[label])], lengths, axis=0)
        frames = frames + rng.normal(0.0, noise, frames.shape)
        # The inverse of YouTube-8M's dequantisation.
        quantised = np.clip(np.rint((frames + 2 - 4 / 512) * 255 / 4), 0, 255).astype(np.uint8)
        yield Record(f"{prefix}{index:05d}", np.array([label]), quantised)
