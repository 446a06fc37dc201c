"""What two processes of one training run do together: metrics over the whole, records shared out."""

from __future__ import annotations

import pytest
import torch

from reprune.youtube8m.records import write_records
from reprune.youtube8m.torch_loader import RecordDataset, RecordLoader
from reprune.youtube8m.torch_metrics import video_metrics
from tests.helpers.processes import in_two_processes, meet
from tests.youtube8m.test_torch_video_metrics import CLASSES, expected, generated, values
from tests.youtube8m.tfrecord_reference import FEATURES, random_records


def _one_process(rank: int, folder: str) -> None:
    dataset = RecordDataset(f"{folder}/*.tfrecord", classes=16, batch_size=4, features=FEATURES)
    loader = RecordLoader(dataset)  # made before the group exists, used after
    meet(rank, folder)

    for idle in (False, True):  # with one process that saw nothing, or not
        batches = [generated(5, 1)] if idle else [generated(5, seed) for seed in (1, 2, 3)]
        metrics = video_metrics(CLASSES)
        for batch in [batches[:1], batches[1:]][rank]:
            metrics.update(*batch)
        assert values(metrics) == pytest.approx(expected(*batches), abs=1e-6)

    mine = [video for batch in loader for video in batch.ids]
    shares: list[list[str]] = [[], []]
    torch.distributed.all_gather_object(shares, mine)
    assert sorted(shares[0] + shares[1]) == sorted(record.id for record in random_records(33))
    assert abs(len(shares[0]) - len(shares[1])) <= 1


def test_two_processes_make_one_whole(tmp_path):
    records = random_records(33)
    for shard in range(3):
        write_records(tmp_path / f"{shard}.tfrecord", records[shard::3], FEATURES)
    in_two_processes(_one_process, str(tmp_path))
