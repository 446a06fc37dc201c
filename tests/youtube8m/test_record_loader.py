"""Batches, sharing out, shuffling, going on where a run stopped."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprune.core.errors import RecordError
from reprune.youtube8m.epochs import assign_files
from reprune.youtube8m.records import Record, write_records
from reprune.youtube8m.torch_loader import Batch, RecordDataset, RecordLoader, collate, dequantize
from tests.youtube8m.tfrecord_reference import FEATURES, random_records

CLASSES = 16

pytestmark = [
    # Python 3.12 warns of any fork beside threads, such as PyTorch's own idle ones.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    # PyTorch warns of more workers than there are processors.
    pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning"),
]


def write_shards(folder: Path, sizes: list[int], **options) -> list[Record]:
    records = random_records(sum(sizes), **options)
    remaining = iter(records)
    for shard, size in enumerate(sizes):
        write_records(folder / f"shard{shard:02}", itertools.islice(remaining, size), FEATURES)
    return records


def dataset(folder: Path, **options) -> RecordDataset:
    return RecordDataset(
        str(folder / "shard*"), **{"classes": CLASSES, "batch_size": 4, "features": FEATURES} | options
    )


def ids(batches) -> list[list[str]]:
    return [batch.ids for batch in batches]


def flat(batches) -> list[str]:
    return list(itertools.chain(*ids(batches)))


def in_turn(streams: list[list[list[str]]]) -> list[list[str]]:
    """What a pool of workers hands over: a batch from each in turn, as long as it has one."""
    missing: list[str] = []
    rounds = itertools.zip_longest(*streams, fillvalue=missing)
    return [batch for turn in rounds for batch in turn if batch is not missing]


@given(files=st.integers(1, 40), consumers=st.integers(1, 12))
def test_each_record_of_each_file_has_one_consumer(files, consumers):
    paths = [Path(str(index)) for index in range(files)]
    shares = [assign_files(paths, consumer, consumers) for consumer in range(consumers)]
    for path in paths:
        owners = [part for share in shares for owned, part in share if owned == path]
        assert all(sum(index % n == i for i, n in owners) == 1 for index in range(100))
    whole = [sum(part == (0, 1) for _, part in share) for share in shares]
    assert max(whole) == min(whole)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("sizes", "workers", "world"),
    [
        ([7], 3, 2),
        ([5, 9], 2, 2),
        ([3, 4, 5, 6, 7], 2, 1),
        ([1, 0, 2], 4, 1),
        ([6, 6, 6, 6], 2, 2),
        ([2], 1, 5),
    ],
)
def test_each_record_is_read_once_per_epoch(tmp_path, monkeypatch, sizes, workers, world, shuffle):
    records = write_shards(tmp_path, sizes)
    read = Counter()
    for rank in range(world):
        data = dataset(tmp_path, shuffle=shuffle)
        data.rank, data.world_size = rank, world
        for worker in range(workers):
            read.update(flat(_as_worker(monkeypatch, data, worker, workers)))
    assert read == Counter(record.id for record in records)


def _as_worker(monkeypatch, data: RecordDataset, worker: int, workers: int) -> list[Batch]:
    """Run one worker's share in this process."""
    info = type("Info", (), {"id": worker, "num_workers": workers})
    with monkeypatch.context() as patch:
        patch.setattr("reprune.youtube8m.torch_loader.get_worker_info", lambda: info)
        items = list(data)
        assert not any(isinstance(item, Batch) for item in items)  # Workers send what lies in shared memory.
        return [item if isinstance(item, int) else data.open(item) for item in items]


def test_what_a_given_up_pass_sent_is_filled_again(tmp_path, monkeypatch):
    write_shards(tmp_path, [9])
    data, info = dataset(tmp_path), type("Info", (), {"id": 0, "num_workers": 1})
    alone = list(RecordLoader(data, pin_memory=True))  # Without a GPU, nothing is pinned.
    monkeypatch.setattr("reprune.youtube8m.torch_loader.get_worker_info", lambda: info)
    for _ in range(2):
        assert [sent.frames.slot for sent in data] == [0, 1, 2]
    for sent, batch in zip(data, alone, strict=True):
        opened = data.open(sent)
        assert opened.ids == batch.ids
        assert (opened.frames == batch.frames).all()
        assert (opened.labels == batch.labels).all()
    assert RecordLoader(data, workers=1)._loader.persistent_workers
    assert not RecordLoader(data)._loader.persistent_workers


def test_real_workers_read_once_and_live_on(tmp_path):
    records = write_shards(tmp_path, [9, 10, 4])
    loader = RecordLoader(dataset(tmp_path), workers=2)
    everything = Counter(record.id for record in records)
    first, second = flat(loader), flat(loader)
    assert Counter(first) == Counter(second) == everything
    assert first != second
    assert loader.epoch == 2
    next(iter(loader))  # a pass that is given up
    assert Counter(flat(loader)) == everything
    loader.set_epoch(0)
    assert flat(loader) == first
    loader.set_epoch(0)
    loader.skip_batches(3)
    rest = flat(loader)
    loader.set_epoch(0)
    assert rest == flat(list(loader)[3:])


def test_a_process_reads_its_share_and_one_that_reads_the_whole_does_not_ask(tmp_path, monkeypatch):
    write_shards(tmp_path, [9, 10, 4])
    shared = dataset(tmp_path)
    shared.rank, shared.world_size = 1, 3
    expected = ids(shared)
    loader, whole = RecordLoader(dataset(tmp_path)), RecordLoader(dataset(tmp_path, whole=True))
    everything = ids(whole)
    assert (loader.dataset.rank, loader.dataset.world_size) == (0, 1)
    for name, value in {"is_available": True, "is_initialized": True, "get_rank": 1, "get_world_size": 3}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    assert ids(loader) == expected
    assert loader.state_dict() == {"epoch": 1, "batches": 0, "workers": 0, "world_size": 3}
    whole.set_epoch(0)
    assert ids(whole) == everything
    made = dataset(tmp_path)
    assert (made.rank, made.world_size) == (1, 3)


def test_seed_and_epoch_fix_the_order(tmp_path):
    write_shards(tmp_path, [8, 8, 8])

    def order(seed: int, epoch: int) -> list[str]:
        loader = RecordLoader(dataset(tmp_path, seed=seed, shuffle_buffer=5))
        loader.set_epoch(epoch)
        return flat(loader)

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    data = dataset(tmp_path, shuffle=False)
    assert flat(data) == flat(RecordLoader(data)) == [record.id for record in random_records(24)]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    workers=st.integers(1, 4),
    done=st.integers(0, 20),
    batch_size=st.integers(1, 4),
)
def test_a_run_goes_on_where_it_stopped(tmp_path_factory, sizes, workers, done, batch_size):
    folder = tmp_path_factory.mktemp("resume")
    write_shards(folder, sizes)
    with pytest.MonkeyPatch.context() as monkeypatch:
        data = dataset(folder, batch_size=batch_size)
        data.start(epoch=3)
        whole = in_turn([ids(_as_worker(monkeypatch, data, worker, workers)) for worker in range(workers)])
        data.start(epoch=3, batches=done)
        streams = [_as_worker(monkeypatch, data, worker, workers) for worker in range(workers)]
        missing = sum(stream.pop(0) if done else 0 for stream in streams)
        assert in_turn(list(map(ids, streams)))[missing:] == whole[done:]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_position_is_saved_and_restored(tmp_path, workers):
    write_shards(tmp_path, [9, 3])  # one worker runs out well before the other
    long = {"max_frames": 2, "batch_size": 2}
    loader = RecordLoader(dataset(tmp_path, **long), workers=workers)
    assert loader.state_dict() == {"epoch": 0, "batches": 0, "workers": workers, "world_size": 1}
    loader.set_epoch(5)
    whole = list(loader)
    for done in (0, 1, len(whole) - 1):
        loader.set_epoch(5)
        for _ in itertools.islice(loader, done):
            pass
        state = loader.state_dict()
        other = RecordLoader(dataset(tmp_path, **long), workers=workers)
        other.load_state_dict(state if done else {**state, "batches": 0})
        rest = list(other)
        assert ids(rest) == ids(whole[done:])
        assert all((a.frames == b.frames).all() for a, b in zip(rest, whole[done:], strict=True))  # also the windows
        assert other.state_dict() == {"epoch": 6, "batches": 0, "workers": workers, "world_size": 1}
    with pytest.raises(ValueError, match=f"saved with workers=7, this run has {workers}"):
        loader.load_state_dict({"epoch": 0, "batches": 0, "workers": 7, "world_size": 1})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_given_number_of_batches(tmp_path, workers):
    records = write_shards(tmp_path, [5, 2, 4])
    for number in (1, 3, 10):
        loader = RecordLoader(dataset(tmp_path, batches_per_epoch=number), workers=workers)
        assert len(loader) == number
        batches = list(loader)
        assert [len(batch.ids) for batch in batches] == [4] * number
        assert set(flat(batches)) <= {record.id for record in records}
        loader.set_epoch(0)
        loader.skip_batches(1)
        assert ids(loader) == ids(batches[1:])
    with pytest.raises(TypeError, match="give batches_per_epoch"):
        len(RecordLoader(dataset(tmp_path)))
    write_records(tmp_path / "shard00", [], FEATURES)
    with pytest.raises(RecordError, match="share 0 of 1 of the files holds no record"):
        list(RecordLoader(RecordDataset(tmp_path / "shard00", classes=1, batch_size=1, batches_per_epoch=1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_records_are_raised_or_counted(tmp_path, workers):
    records = write_shards(tmp_path, [6, 6])
    for shard in ("shard00", "shard01"):
        data = bytearray((tmp_path / shard).read_bytes())
        data[-10] ^= 1
        (tmp_path / shard).write_bytes(data)
    with pytest.raises(RecordError, match="record 5 at byte"):
        list(RecordLoader(dataset(tmp_path), workers=workers))
    loader = RecordLoader(dataset(tmp_path, on_error="skip"), workers=workers)
    for _ in range(2):
        assert sorted(flat(loader)) == sorted(
            record.id for record in records if record not in (records[5], records[11])
        )
        assert loader.skipped == 2
    # Within a pass, too, and over a share that is read again.
    assert {loader.skipped for _ in loader} <= {0, 1, 2}
    if not workers:
        again = RecordLoader(dataset(tmp_path, on_error="skip", batches_per_epoch=5))
        assert [again.skipped for _ in again] == [2, 2, 4, 4, 4]


def test_batches_hold_what_the_records_hold():
    records = random_records(5)
    batch = collate(records, CLASSES)
    assert batch.ids == [record.id for record in records]
    assert batch.frames.dtype == torch.uint8
    assert batch.frames.shape == (5, max(len(record.frames) for record in records), 8)
    assert batch.labels.dtype == torch.bool
    for row, record in enumerate(records):
        assert batch.lengths[row] == len(record.frames)
        assert (batch.frames[row, : len(record.frames)].numpy() == record.frames).all()
        assert not batch.frames[row, len(record.frames) :].any()
        assert batch.labels[row].nonzero().flatten().tolist() == record.labels.tolist()


def test_padding_by_the_last_frame():
    records = random_records(5)
    batch = collate(records, CLASSES, "last", max_frames=9)
    assert batch.frames.shape == (5, 9, 8)
    assert batch.lengths.tolist() == [9] * 5
    for row, record in enumerate(records):
        expected = record.frames[np.minimum(np.arange(9), len(record.frames) - 1)]
        assert (batch.frames[row].numpy() == expected).all()


def test_windows_are_contiguous_and_at_most_so_long(tmp_path):
    frames = np.repeat(np.arange(50, dtype=np.uint8)[:, None], 8, axis=1)
    write_records(tmp_path / "shard", [Record(str(index), np.array([0]), frames) for index in range(40)], FEATURES)

    def starts(window: str, epoch: int) -> list[int]:
        loader = RecordLoader(dataset(tmp_path, window=window, max_frames=20))
        loader.set_epoch(epoch)
        batches = list(loader)
        for batch in batches:
            assert batch.lengths.tolist() == [20] * 4
            assert (batch.frames[:, 1:].int() - batch.frames[:, :-1].int() == 1).all()
        return [int(start) for batch in batches for start in batch.frames[:, 0, 0]]

    assert starts("first", 0) == starts("first", 1) == [0] * 40
    assert starts("random", 0) == starts("random", 0) != starts("random", 1)
    assert 0 <= min(starts("random", 0)) < 10
    assert 20 < max(starts("random", 0)) <= 30


def test_dequantize():
    frames = torch.arange(256, dtype=torch.uint8).reshape(2, 16, 8)
    plain = dequantize(frames, normalize=False)
    assert plain.dtype == torch.float32
    expected = frames.double() * 4 / 255 + 4 / 512 - 2
    torch.testing.assert_close(plain.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(dequantize(frames).norm(dim=-1), torch.ones(2, 16))
    lengths = torch.tensor([0, 5])
    masked = dequantize(frames, lengths, dtype=torch.float64)
    assert not masked[0].any()
    assert not masked[1, 5:].any()
    torch.testing.assert_close(masked[1, :5], expected[1, :5] / expected[1, :5].norm(dim=-1, keepdim=True))


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"classes": 0},
        {"max_frames": 0},
        {"shuffle_buffer": 0},
        {"window": "last"},
        {"padding": "zero"},
    ],
)
def test_arguments_that_make_no_sense(tmp_path, options):
    write_shards(tmp_path, [1])
    with pytest.raises(ValueError, match=next(iter(options))):
        dataset(tmp_path, **options)
    with pytest.raises(ValueError, match="at least 0"):
        RecordLoader(dataset(tmp_path)).skip_batches(-1)
    with pytest.raises(ValueError, match="from 0 to 256"):
        RecordLoader(dataset(tmp_path), workers=257)


def test_loaders_of_one_dataset_do_not_disturb_each_other(tmp_path):
    write_shards(tmp_path, [20, 20])
    data = dataset(tmp_path)
    for _ in range(2):
        one, other = RecordLoader(data, workers=2), RecordLoader(data, workers=2)
        other.set_epoch(1)
        for left, right in zip(one, other, strict=True):
            assert left.ids != right.ids
            assert (left.frames.sum(dim=(1, 2)) == torch.tensor([_sum(name) for name in left.ids])).all()
            assert (right.frames.sum(dim=(1, 2)) == torch.tensor([_sum(name) for name in right.ids])).all()


@cache
def _sum(name: str) -> int:
    return {record.id: int(record.frames.sum(dtype=int)) for record in random_records(40)}[name]


def test_batches_that_are_kept_stay_as_they_were(tmp_path):
    write_shards(tmp_path, [60, 60])
    alone = {name: rows for batch in RecordLoader(dataset(tmp_path)) for name, rows in _rows(batch).items()}
    for _ in range(2):
        loader = RecordLoader(dataset(tmp_path, batch_size=2), workers=2)
        for _ in range(3):
            loader.set_epoch(0)
            kept = list(loader)  # more than the workers have buffers for
            assert all((rows == alone[name]).all() for batch in kept for name, rows in _rows(batch).items())
            gone_by = [_rows(batch, copy=True) for batch in loader]
            assert all((rows == alone[name]).all() for batch in gone_by for name, rows in batch.items())


def _rows(batch: Batch, copy: bool = False) -> dict[str, np.ndarray]:
    rows = [frames[:length].numpy() for frames, length in zip(batch.frames, batch.lengths, strict=True)]
    return {name: row.copy() if copy else row for name, row in zip(batch.ids, rows, strict=True)}
