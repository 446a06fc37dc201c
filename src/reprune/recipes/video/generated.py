"""Videos made up in YouTube-8M's format, whose classes differ only in the order of what happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reprune.youtube8m.records import Record, write_records

FEATURES: Mapping[str, int] = {"rgb": 32, "audio": 16}
SCENES = 3
ORDERS = tuple(permutations(range(SCENES)))
CLASSES = len(ORDERS)
LONGEST = 36


def write_shards(folder: Path, *, train: int, validate: int, shards: int = 4, seed: int = 0) -> None:
    """Write `train00.tfrecord` … and `validate00.tfrecord`.

    Every video shows the same scenes, each for a random number of frames and under noise; its one label says in which
    order. Averaged over time, all classes look the same.

    Args:
        folder: Where to; it is made when it does not exist.
        train: Number of videos to train on.
        validate: Number of videos to measure on.
        shards: Number of files of the first kind.
        seed: Seed of everything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    scenes = rng.normal(0.0, 0.6, (SCENES, sum(FEATURES.values())))
    for shard in range(shards):
        videos = _videos(f"t{shard:02d}", train // shards, scenes, rng)
        write_records(folder / f"train{shard:02d}.tfrecord", videos, FEATURES)
    write_records(folder / "validate00.tfrecord", _videos("v00", validate, scenes, rng), FEATURES)


def _videos(prefix: str, number: int, scenes: NDArray[np.float64], rng: np.random.Generator) -> Iterator[Record]:
    for index in range(number):
        label = int(rng.integers(CLASSES))
        lengths = rng.integers(4, LONGEST // SCENES + 1, SCENES)
        frames = np.repeat(scenes[list(ORDERS[label])], lengths, axis=0)
        frames = frames + rng.normal(0.0, 0.8, frames.shape)
        # The inverse of YouTube-8M's dequantisation.
        quantised = np.clip(np.rint((frames + 2 - 4 / 512) * 255 / 4), 0, 255).astype(np.uint8)
        yield Record(f"{prefix}{index:05d}", np.array([label]), quantised)
