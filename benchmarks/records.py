"""Records per second: ours against TensorFlow's own tf.data pipeline doing the same parse.

    python benchmarks/records.py [--source ../shared/data/youtube8m_one_video/train00.tfrecord]

Both sides read the same shards (one real video, again and again), check both checksums of every record and parse it.
Ours uses two worker processes, TensorFlow two threads; everything is held to the same two cores. Two comparisons:

* parse: every record becomes one uint8 array, labels and id, and is counted where it was made;
* batches: the consumer receives padded uint8 batches with lengths, multi-hot labels and ids.

Each contestant lives in a process of its own and passes once over all shards to warm up; then they take turns. Beside
the records per second stands the processor time of all of a contestant's processes (where /proc tells), which other
work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reprune.youtube8m.records import RecordReader, find_files, read_records, write_records

FEATURES = {"rgb": 1024, "audio": 128}
CLASSES = 3862
CORES = 2


def ours_parse(pattern: str, _: int) -> Iterable[int]:
    with multiprocessing.Pool(CORES) as pool:
        while True:
            yield sum(pool.starmap(_count_share, [(pattern, share) for share in range(CORES)]))


def _count_share(pattern: str, share: int) -> int:
    files = [(path, (0, 1)) for path in find_files(pattern)[share::CORES]]
    return sum(1 for _ in RecordReader(files, FEATURES, classes=CLASSES))


def ours_batches(pattern: str, batch_size: int) -> Iterable[int]:
    from reprune.youtube8m.torch_loader import RecordDataset, RecordLoader

    dataset = RecordDataset(pattern, classes=CLASSES, batch_size=batch_size, features=FEATURES, shuffle=False)
    loader = RecordLoader(dataset, workers=CORES)
    while True:
        yield sum(len(batch.frames) for batch in loader)


def tensorflow_parse(pattern: str, _: int) -> Iterable[int]:
    dataset = _tensorflow_records(pattern)
    while True:
        # Counted inside the pipeline: handing single records over to Python would be the slowest part.
        yield int(dataset.reduce(0, lambda count, *record: count + 1))


def tensorflow_batches(pattern: str, batch_size: int) -> Iterable[int]:
    dataset = _tensorflow_records(pattern).padded_batch(batch_size).prefetch(2)
    while True:
        yield sum(len(frames) for frames, *_ in dataset)


def _tensorflow_records(pattern: str) -> Any:
    import tensorflow as tf

    def parse(serialised: Any) -> Any:
        context, lists = tf.io.parse_single_sequence_example(
            serialised,
            {"id": tf.io.FixedLenFeature([], tf.string), "labels": tf.io.VarLenFeature(tf.int64)},
            {name: tf.io.FixedLenSequenceFeature([], tf.string) for name in FEATURES},
        )
        parts = [tf.io.decode_raw(lists[name], tf.uint8) for name in FEATURES]
        parts = [tf.ensure_shape(part, [None, size]) for part, size in zip(parts, FEATURES.values(), strict=True)]
        frames = tf.concat(parts, axis=1)
        positive = context["labels"].values
        labels = tf.scatter_nd(positive[:, None], tf.ones_like(positive, tf.bool), [CLASSES])
        return frames, tf.shape(frames)[0], labels, context["id"]

    def shard(file: Any) -> Any:
        return tf.data.TFRecordDataset(file, buffer_size=1 << 20)

    files = tf.data.Dataset.from_tensor_slices(sorted(tf.io.gfile.glob(pattern)))
    dataset = files.interleave(shard, cycle_length=CORES, num_parallel_calls=CORES, deterministic=False)
    options = tf.data.Options()
    options.threading.private_threadpool_size = CORES
    return dataset.map(parse, num_parallel_calls=CORES, deterministic=False).with_options(options)


CONTESTANTS = {
    "read_records, 2 processes": ours_parse,
    "tf.data parse, 2 threads": tensorflow_parse,
    "RecordLoader, 2 workers": ours_batches,
    "tf.data padded_batch, 2 threads": tensorflow_batches,
}


def serve(side: str, pattern: str, batch_size: int) -> None:
    """Run in a process of its own: one pass for each line on standard input, its records per second as the answer."""
    passes = iter(CONTESTANTS[side](pattern, batch_size))
    next(passes)
    print("ready", flush=True)
    for _ in itertools.takewhile(bool, iter(sys.stdin.readline, None)):
        started = time.perf_counter()
        records = next(passes)
        print(records / (time.perf_counter() - started), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("REPRUNE_DATA", Path(__file__).parents[1] / "../shared/data"))
    parser.add_argument("--source", type=Path, default=data / "youtube8m_one_video/train00.tfrecord")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--records", type=int, default=1000, help="per shard")
    parser.add_argument("--batch-size", type=int, default=160)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "GLOB"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve, options.batch_size)
        return

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    record = next(read_records(options.source, FEATURES))
    with tempfile.TemporaryDirectory() as folder:
        for shard in range(options.shards):
            write_records(
                Path(folder) / f"train{shard:02}.tfrecord", itertools.repeat(record, options.records), FEATURES
            )
        size = (Path(folder) / "train00.tfrecord").stat().st_size / options.records
        print(f"{options.shards} shards × {options.records} records of {size / 1e3:.0f} kB, {CORES} cores")
        servers = {side: _start(side, f"{folder}/*.tfrecord", options.batch_size) for side in CONTESTANTS}
        rates: dict[str, list[float]] = {side: [] for side in CONTESTANTS}
        costs: dict[str, list[float]] = {side: [] for side in CONTESTANTS}
        for _ in range(options.runs):
            for side, server in servers.items():
                before = _processor_seconds(server.pid)
                rates[side].append(_ask(server))
                costs[side].append((_processor_seconds(server.pid) - before) / options.shards / options.records)
        for server in servers.values():
            server.communicate()
    fast = {side: statistics.median(rates[side]) for side in CONTESTANTS}
    dear = {side: statistics.median(costs[side]) for side in CONTESTANTS}
    for side in CONTESTANTS:
        low, high = min(rates[side]), max(rates[side])
        print(
            f"  {side:<32} {fast[side]:8.0f} records/s (median of {options.runs}; {low:.0f} to {high:.0f}), "
            f"{dear[side] * 1e6:4.0f} µs of processor time each"
        )
    for what, ours, theirs in zip(("parse", "batches"), list(CONTESTANTS)[::2], list(CONTESTANTS)[1::2], strict=True):
        print(
            f"  {what}: {fast[ours] / fast[theirs]:.2f} times as fast as tf.data, "
            f"in {dear[ours] / dear[theirs]:.2f} of its processor time"
        )


def _processor_seconds(pid: int) -> float:
    """Return the time that a process and its children have had, or NaN where /proc does not tell."""
    process = Path(f"/proc/{pid}")
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        children = (process / f"task/{pid}/children").read_text().split()
    except OSError:
        return math.nan
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(_processor_seconds(int(child)) for child in children)


def _start(side: str, pattern: str, batch_size: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--batch-size", str(batch_size), "--serve", side, pattern]
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=quiet)
    assert server.stdout is not None
    server.stdout.readline()  # it has warmed up: one at a time, for the cores are shared
    return server


def _ask(server: subprocess.Popen[str]) -> float:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write("\n")
    server.stdin.flush()
    return float(server.stdout.readline())


if __name__ == "__main__":
    main()
