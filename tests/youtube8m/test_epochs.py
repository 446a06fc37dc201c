"""What an epoch reads and in which order, checked by what every order must fulfil."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reprune.youtube8m.batches import MAX_FRAMES
from reprune.youtube8m.epochs import Epochs, assign_files, in_batches
from reprune.youtube8m.records import Record, find_files, write_records

FEATURES = {"audio": 1}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three files of ten videos, of which the k-th has the frames 0 to k."""
    for file in range(3):
        videos = (Record(f"{file}{k}", np.array([k]), np.arange(k + 1, dtype=np.uint8)[:, None]) for k in range(10))
        write_records(tmp_path / f"{file}", videos, FEATURES)
    return find_files(tmp_path / "*")


def ids(epochs: Epochs, *share: int) -> list[str]:
    return [record.id for record in epochs.open(*share)[1]]


def test_a_record_comes_out_at_most_a_buffer_early(files: list[Path]) -> None:
    read = [f"{file}{k}" for file in range(3) for k in range(10)]
    assert ids(Epochs(files, 10, FEATURES, shuffle=False), 4, 2) == read
    for size in (1, 4, 30, 100):
        epochs = Epochs(files, 10, FEATURES, shuffle_buffer=size)
        orders = {tuple(ids(epochs, epoch, repeat)) for epoch in range(3) for repeat in range(2)}
        assert len(orders) == 6 if size > 1 else len(orders) > 1
        for order in orders:
            assert sorted(order) == read
            # Files come in an order of their own; within it a record goes into the buffer, and some other comes out.
            whole = [id[0] for id in order]
            if size == 1:
                assert [id[1] for id in order] == [str(k) for k in range(10)] * 3
                assert len(set(whole[::10])) == 3
            if size == 4:
                first = list(dict.fromkeys(whole))
                place = {f"{file}{k}": 10 * n + k for n, file in enumerate(first) for k in range(10)}
                assert all(place[id] - position < 4 for position, id in enumerate(order))
                assert any(place[id] - position == 3 for position, id in enumerate(order))
                # None waits in it for ever longer: each is as likely drawn as the others.
                assert any(position - place[id] > 3 for position, id in enumerate(order))
    assert ids(epochs, 1) == ids(epochs, 1) != ids(Epochs(files, 10, FEATURES, seed=1), 1)
    # All consumers read the files in one order, or they would not share the records.
    for consumers in (2, 4):
        assert sorted(id for consumer in range(consumers) for id in ids(epochs, 1, 0, consumer, consumers)) == read


def test_windows_of_long_videos(files: list[Path]) -> None:
    def windows(**options: object) -> dict[str, list[int]]:
        return {
            record.id: record.frames[:, 0].tolist()
            for record in Epochs(files, 10, FEATURES, max_frames=4, **options).open(0)[1]
        }

    assert windows(window="first") == {f"{file}{k}": list(range(min(k + 1, 4))) for file in range(3) for k in range(10)}
    starts = {(id[1], frames[0]) for seed in range(20) for id, frames in windows(seed=seed).items()}
    # Every start that leaves a whole window, and no other.
    assert starts == {(str(k), start) for k in range(10) for start in range(max(k - 3, 0) + 1)}
    assert all(frames == list(range(frames[0], frames[0] + min(int(id[1]) + 1, 4))) for id, frames in windows().items())
    [cut] = [record for record in Epochs(files[:1], 10, FEATURES, max_frames=4).open(0)[1] if record.id == "09"]
    assert cut.frames.flags.owndata  # The rest of the video is not held in memory.
    assert (cut.labels.tolist(), Epochs(files, 10, FEATURES).max_frames) == ([9], MAX_FRAMES)


def test_files_are_dealt_out_whole_as_far_as_they_go_round() -> None:
    files = [Path(str(k)) for k in range(8)]
    assert assign_files(files, 1, 3) == [(files[1], (0, 1)), (files[4], (0, 1)), (files[6], (1, 3)), (files[7], (1, 3))]
    assert assign_files(files[:2], 2, 3) == [(files[0], (2, 3)), (files[1], (2, 3))]
    assert assign_files(files[:2], 0, 1) == [(files[0], (0, 1)), (files[1], (0, 1))]


def test_batches_of_what_comes() -> None:
    assert list(in_batches(iter("abcdefg"), 3)) == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
    assert list(in_batches(iter("abc"), 3)) == [["a", "b", "c"]]
    assert list(in_batches(iter(""), 3)) == []
