"""Reading and writing undamaged records, and every complaint about their content."""

from __future__ import annotations

import gzip
import importlib
import itertools
import os
import resource
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprune.core.errors import RecordError
from reprune.youtube8m.framing import masked_crc
from reprune.youtube8m.metrics import VideoMetrics
from reprune.youtube8m.records import Record, RecordWriter, count_records, find_files, read_records, write_records
from tests.youtube8m import tfrecord_reference as reference
from tests.youtube8m.tfrecord_reference import FEATURES, assert_same, random_records

SHARED = Path(os.environ.get("REPRUNE_DATA", Path(__file__).parents[2] / "../shared/data"))


def shared(pattern: str) -> str:
    if not list(SHARED.glob(pattern)):
        pytest.skip(f"{pattern} is not in {SHARED}; set REPRUNE_DATA to where the data is")
    return str(SHARED / pattern)


def write_payload(folder: Path, *payloads: bytes) -> Path:
    return reference.write_reference(folder / "file.tfrecord", payloads)


def test_reads_what_the_reference_writer_wrote(tmp_path):
    records = random_records(20)
    path = write_payload(tmp_path, *map(reference.serialised, records))
    assert_same(list(read_records(path, FEATURES, classes=16)), records)
    assert count_records(path) == 20


def test_writes_what_the_reference_writer_writes(tmp_path):
    [record] = random_records(1)
    write_records(tmp_path / "ours", [record], FEATURES)
    # protobuf orders map entries by key: audio before rgb, id before labels.
    columns = {"audio": record.frames[:, 5:], "rgb": record.frames[:, :5]}
    lists = {
        name: reference.feature_list([reference.bytes_feature(row.tobytes()) for row in rows])
        for name, rows in columns.items()
    }
    context = {
        "id": reference.bytes_feature(record.id.encode()),
        "labels": reference.int64_feature(record.labels.tolist()),
    }
    assert (tmp_path / "ours").read_bytes() == reference.framed(reference.example(context, lists))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    number=st.integers(0, 5),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=3),
    compression=st.sampled_from([None, "GZIP"]),
)
def test_a_round_trip_changes_nothing(tmp_path_factory, seed, number, sizes, compression):
    features = {f"list {index}": size for index, size in enumerate(sizes)}
    records = random_records(number, seed, features)
    path = tmp_path_factory.mktemp("trip") / "file.tfrecord"
    assert write_records(path, records, features, compression) == number
    assert path.read_bytes().startswith(b"\x1f\x8b") == (compression is not None)
    assert_same(list(read_records(path, features)), records)
    assert count_records(path) == number


def test_a_plain_file_that_starts_like_gzip_is_read_as_plain(tmp_path):
    length = 0x088B1F  # its bytes are GZIP's magic number
    features = {"rgb": length - 52}
    [record] = random_records(1, features=features, longest=1)
    payload = reference.serialised(Record("v", np.array([1]), record.frames), features)
    features = {"rgb": features["rgb"] + length - len(payload)}
    frames = np.zeros((1, features["rgb"]), np.uint8)
    path = tmp_path / "file"
    write_records(path, [Record("v", np.array([1]), frames)], features)
    assert path.read_bytes().startswith(b"\x1f\x8b\x08")
    assert next(read_records(path, features)).frames.shape == frames.shape


def test_gzip_of_several_members_is_one_file(tmp_path):
    records = random_records(4)
    parts = [reference.framed(reference.serialised(record)) for record in records]
    (tmp_path / "file").write_bytes(gzip.compress(parts[0] + parts[1]) + gzip.compress(parts[2] + parts[3]))
    assert_same(list(read_records(tmp_path / "file", FEATURES)), records)


def test_the_other_legal_encodings(tmp_path):
    record = next(record for record in random_records(9) if len(record.frames) > 2)
    rgb, audio = record.frames[:, :5], record.frames[:, 5:]
    wide = b"\x0a\x83\x00"  # a length of 3 in two bytes
    odd_audio = b"".join(reference.field(1, reference.field(1, wide + row.tobytes())) for row in audio)
    lists = {"rgb": reference.feature_list([reference.bytes_feature(row.tobytes()) for row in rgb]), "audio": odd_audio}
    context = {
        "video_id": reference.bytes_feature(record.id.encode()),
        "labels": reference.int64_feature(record.labels.tolist(), packed=False),
        "score": reference.field(2, reference.field(1, b"\0\0\0\0")),
    }
    path = write_payload(tmp_path, reference.example(context, {"more": b"", **lists}))
    assert_same(list(read_records(path, FEATURES)), [record])


def test_features_choose_and_order_the_columns(tmp_path):
    [record] = random_records(1)
    path = write_payload(tmp_path, reference.serialised(record))
    [swapped] = read_records(path, {"audio": 3, "rgb": 5})
    assert (swapped.frames == np.hstack([record.frames[:, 5:], record.frames[:, :5]])).all()
    [alone] = read_records(path, {"audio": 3})
    assert (alone.frames == record.frames[:, 5:]).all()
    assert alone.frames.flags.owndata
    assert alone.frames.flags.c_contiguous


def test_parts_share_a_file_out(tmp_path, monkeypatch):
    records = random_records(11)
    payloads = list(map(reference.serialised, records))
    path = write_payload(tmp_path, *payloads)
    summed: list[bytes] = []
    monkeypatch.setattr("reprune.youtube8m.framing.masked_crc", lambda data: summed.append(data) or masked_crc(data))
    for parts in (1, 2, 3, 20):
        for part in range(parts):
            summed.clear()
            assert_same(list(read_records(path, FEATURES, part=(part, parts))), records[part::parts])
            # Of the others, only the headers are read.
            assert [data for data in summed if len(data) > 8] == payloads[part::parts]
    summed.clear()
    assert count_records(path) == 11
    assert {len(data) for data in summed} == {8}


def test_paths_and_globs(tmp_path, monkeypatch):
    for name in ("b1", "a2", "a1", "c[1]"):
        write_records(tmp_path / name, random_records(1), FEATURES)
    assert [path.name for path in find_files(str(tmp_path / "a*"))] == ["a1", "a2"]
    assert [path.name for path in find_files([tmp_path / "b1", str(tmp_path / "[ab]*")])] == ["b1", "a1", "a2"]
    assert [path.name for path in find_files(tmp_path / "c[1]")] == ["c[1]"]
    (tmp_path / "one" / "other").mkdir(parents=True)
    write_records(tmp_path / "one" / "other" / "a3", random_records(1), FEATURES)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [path.name for path in find_files(["~/a1", "~/**/a*", tmp_path / "*"])] == ["a1", "a2", "a3", "b1", "c[1]"]
    with pytest.raises(RecordError, match="no file matches"):  # But a folder.
        find_files(tmp_path / "on*")
    with pytest.raises(RecordError, match=r"no file matches .*train\*\.tfrecord.*correct the path"):
        read_records([tmp_path / "a1", tmp_path / "train*.tfrecord"])
    with pytest.raises(RecordError, match="is a folder; name its files with a glob"):
        read_records(tmp_path)
    with pytest.raises(RecordError, match="empty"):
        read_records([])


@pytest.mark.parametrize(
    "arguments",
    [
        {"on_error": "ignore"},
        {"part": (2, 2)},
        {"part": (0, 0)},
        {"part": (-1, 2)},
        {"features": {"a": 1.0}},
        {"features": {}},
        {"features": {"a": 0}},
        {"classes": 0},
    ],
)
def test_arguments_that_make_no_sense(tmp_path, arguments):
    path = write_payload(tmp_path)
    with pytest.raises(ValueError, match=next(iter(arguments))):
        read_records(path, **arguments)


def test_one_class_and_one_byte_a_frame(tmp_path, caplog):
    record = Record("v", np.array([0]), np.array([[7]], np.uint8))
    assert write_records(tmp_path / "file", [record], {"a": 1}) == 1
    reader = read_records(tmp_path / "file", {"a": 1}, classes=1)
    assert_same(list(reader), [record])
    assert (reader.read, reader.skipped, reader.errors, caplog.text) == (1, 0, [], "")


FRAME = {"rgb": reference.bytes_feature(bytes(5)), "audio": reference.bytes_feature(bytes(3))}
LISTS = {name: reference.feature_list([frame, frame]) for name, frame in FRAME.items()}
CONTEXT = {"id": reference.bytes_feature(b"v"), "labels": reference.int64_feature([1])}
BAD_CONTENT = {
    "not protobuf": (b"\xff" * 9, "not a protobuf SequenceExample"),
    "empty": (b"", "no context feature 'id' or 'video_id' .there is nothing"),
    "no id": (reference.example({"labels": CONTEXT["labels"]}, LISTS), "no context feature 'id'.*'labels'"),
    "two ids": (reference.example(CONTEXT | {"id": reference.bytes_feature(b"v", b"w")}, LISTS), "2 byte strings"),
    "id no text": (reference.example(CONTEXT | {"id": reference.bytes_feature(b"\xff")}, LISTS), "not text"),
    "no labels": (reference.example({"id": CONTEXT["id"]}, LISTS), "no context feature 'labels'.*test partition"),
    "labels no integers": (reference.example(CONTEXT | {"labels": CONTEXT["id"]}, LISTS), "'labels' with integers"),
    "label too high": (
        reference.example(CONTEXT | {"labels": reference.int64_feature([3, 16])}, LISTS),
        r"labels \[16\] are outside the classes, 0 to 15",
    ),
    "label negative": (reference.example(CONTEXT | {"labels": reference.int64_feature([-1])}, LISTS), r"labels \[-1\]"),
    "no lists": (reference.example(CONTEXT, {}), "features of the video as a whole .'id', 'labels'.*frame-level"),
    "missing list": (reference.example(CONTEXT, {"rgb": LISTS["rgb"]}), "no feature list 'audio' .there is 'rgb'"),
    "list lengths": (
        reference.example(CONTEXT, LISTS | {"audio": reference.feature_list([FRAME["audio"]])}),
        "different lengths, {'rgb': 2, 'audio': 1}",
    ),
    "no frames": (reference.example(CONTEXT, {"rgb": b"", "audio": b""}), "no frames"),
    "frame size": (
        reference.example(CONTEXT, LISTS | {"rgb": reference.feature_list([FRAME["rgb"], FRAME["audio"]])}),
        "frame 1 of 'rgb' holds 3 bytes, not 5",
    ),
    "frame sizes that add up": (
        reference.example(
            CONTEXT, LISTS | {"rgb": reference.feature_list([reference.bytes_feature(bytes(n)) for n in (6, 4)])}
        ),
        "frame 0 of 'rgb' holds 6 bytes, not 5",
    ),
    "two values": (
        reference.example(
            CONTEXT, LISTS | {"rgb": reference.feature_list([reference.bytes_feature(b"12", b"345")] * 2)}
        ),
        "frame 0 of 'rgb' holds 2 byte strings, not 5 bytes",
    ),
    "floats": (
        reference.example(CONTEXT, LISTS | {"rgb": reference.feature_list([reference.field(2, b"\x0a\x00")] * 2)}),
        "the frames of 'rgb' are of kind float_list, not bytes: quantise them",
    ),
    "list not protobuf": (reference.example(CONTEXT, LISTS | {"rgb": b"\xff"}), "'rgb' is not a protobuf FeatureList"),
}


@pytest.mark.parametrize("case", BAD_CONTENT)
def test_bad_content_is_named_and_located(tmp_path, case):
    payload, complaint = BAD_CONTENT[case]
    good = random_records(2)
    parts = [reference.serialised(good[0]), payload, reference.serialised(good[1])]
    path = write_payload(tmp_path, *parts)
    offset = len(reference.framed(parts[0]))

    reader = read_records(path, FEATURES, classes=16)
    assert_same([next(reader)], good[:1])
    with pytest.raises(RecordError, match=complaint) as caught:
        next(reader)
    assert str(caught.value).startswith(f"{path}: record 1 at byte {offset}: ")

    reader = read_records(path, FEATURES, classes=16, on_error="skip")
    assert_same(list(reader), good)
    assert (reader.read, reader.skipped) == (2, 1)
    assert reader.errors == [str(caught.value)]


def test_skipping_is_reported_in_the_log(tmp_path, caplog):
    path = write_payload(tmp_path, *[b"\xff"] * 150)
    reader = read_records(path, FEATURES, on_error="skip")
    assert list(reader) == []
    assert reader.skipped == 150
    assert len(reader.errors) == 100
    assert "skipped 150 damaged records, kept 0; the first: " in caplog.text


def test_the_writer_refuses_what_could_not_be_read_back(tmp_path):
    good = random_records(1)[0]
    path = tmp_path / "file"
    for bad, complaint in [
        (Record("v", good.labels, good.frames.astype(float)), "frames must be uint8"),
        (Record("v", good.labels, good.frames[:, :7]), r"T × 8 with T ≥ 1, not uint8 \(\d, 7\)"),
        (Record("v", good.labels, good.frames[:0]), "T ≥ 1"),
        (Record("v", np.array([-1]), good.frames), "labels must be"),
        (Record("v", np.array([0.5]), good.frames), "labels must be"),
        (Record("v", np.array([[1]]), good.frames), "labels must be"),
        (Record("v", good.labels, good.frames[None]), "frames must be uint8"),
    ]:
        with pytest.raises(RecordError, match=rf"file: record 1 \(v\): .*{complaint}"):
            write_records(path, [good, bad], FEATURES)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="compression"):
        RecordWriter(path, FEATURES, "ZLIB")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def interrupted():
        yield from random_records(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, interrupted(), FEATURES)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    for compression in (None, "GZIP"):
        with RecordWriter(path, FEATURES, compression) as writer:
            for record in random_records(3):
                writer.write(record)
        assert writer.written == 3
        assert_same(list(read_records(path, FEATURES)), random_records(3))  # Though the writer is still there.
    (tmp_path / "other").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_reads_a_real_video_as_tensorflow_wrote_it():
    [record] = read_records(shared("youtube8m_one_video/train00.tfrecord"), classes=3862)
    assert (record.id, record.labels.tolist(), record.frames.shape) == ("SjJ3", [11], (170, 1152))
    assert record.frames[0, :4].tolist() == [24, 135, 95, 131]


def test_reads_spoken_digits_as_tensorflow_wrote_them():
    pattern = shared("spoken_digits_yt8m/*.tfrecord")
    count = 0
    for record in read_records(pattern, {"audio": 128}, classes=16):
        digit, speaker = sorted(record.labels.tolist())
        assert record.id.startswith(f"{digit}_")
        assert ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"][speaker - 10] in record.id
        count += 1
    assert count == count_records(pattern) == 3000


TENSORFLOW = """
import sys
import numpy as np
import tensorflow as tf
folder = sys.argv[1]
def feature(*values):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
rng = np.random.default_rng(0)
frames = [rng.integers(0, 256, (t, 8), dtype=np.uint8) for t in (1, 7, 300)]
for suffix, options in (("plain", None), ("gzip", "GZIP")):
    with tf.io.TFRecordWriter(f"{folder}/{suffix}", options) as writer:
        for index, rows in enumerate(frames):
            lists = {
                name: tf.train.FeatureList(feature=[feature(row.tobytes()) for row in part])
                for name, part in (("rgb", rows[:, :5]), ("audio", rows[:, 5:]))
            }
            labels = tf.train.Feature(int64_list=tf.train.Int64List(value=range(index)))
            context = tf.train.Features(feature={"id": feature(b"v%d" % index), "labels": labels})
            example = tf.train.SequenceExample(
                context=context, feature_lists=tf.train.FeatureLists(feature_list=lists)
            )
            writer.write(example.SerializeToString())
for suffix, options in (("ours", None), ("ours.gz", "GZIP")):
    read = list(tf.data.TFRecordDataset(f"{folder}/{suffix}", options))
    assert len(read) == 3
    for index, (item, rows) in enumerate(zip(read, frames)):
        example = tf.train.SequenceExample.FromString(item.numpy())
        assert example.context.feature["id"].bytes_list.value[0] == b"v%d" % index
        assert list(example.context.feature["labels"].int64_list.value) == list(range(index))
        for name, part in (("rgb", rows[:, :5]), ("audio", rows[:, 5:])):
            held = [frame.bytes_list.value[0] for frame in example.feature_lists.feature_list[name].feature]
            assert held == [row.tobytes() for row in part]
"""


def test_reads_and_writes_what_tensorflow_does(tmp_path):
    if find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    rng = np.random.default_rng(0)
    records = [
        Record(f"v{index}", np.arange(index), rng.integers(0, 256, (length, 8), dtype=np.uint8))
        for index, length in enumerate((1, 7, 300))
    ]
    write_records(tmp_path / "ours", records, FEATURES)
    write_records(tmp_path / "ours.gz", records, FEATURES, "GZIP")
    assert (tmp_path / "ours.gz").read_bytes()[4:8] == bytes(4)  # no time stamp, by RFC 1952
    subprocess.run([sys.executable, "-c", TENSORFLOW, str(tmp_path)], check=True, capture_output=True)
    assert_same(list(read_records(tmp_path / "plain", FEATURES)), records)
    assert_same(list(read_records(tmp_path / "gzip", FEATURES)), records)


def test_modules_are_imported_when_they_are_asked_for():
    package = importlib.import_module("reprune.youtube8m")
    for name in ("framing", "epochs"):
        assert package.__getattr__(name) is sys.modules[f"reprune.youtube8m.{name}"]
    for name in ("nothing", "__init__", "_hidden"):
        with pytest.raises(AttributeError, match=f"module 'reprune.youtube8m' has no attribute '{name}'"):
            package.__getattr__(name)


def test_importing_records_imports_no_framework():
    code = (
        "import sys, reprune.youtube8m.records, reprune.youtube8m.metrics\n"
        "assert not {'torch', 'tensorflow', 'keras', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_memory_stays_flat_over_twenty_thousand_records(tmp_path):
    features, classes, batch = {"rgb": 1024, "audio": 128}, 3862, 100
    rng = np.random.default_rng(0)

    def generate(number: int):
        for index in range(number):
            frames = rng.integers(0, 256, (rng.integers(5, 30), 1152), dtype=np.uint8)
            yield Record(str(index), rng.choice(classes, 3, replace=False), frames)

    for shard in range(20):
        write_records(tmp_path / f"{shard:02}", generate(1000), features)
    metrics = VideoMetrics(classes)
    reader = read_records(str(tmp_path / "*"), features, classes=classes)
    peaks = []
    while records := list(itertools.islice(reader, batch)):
        labels = np.zeros((len(records), classes), bool)
        for row, record in enumerate(records):
            labels[row, record.labels] = True
        metrics.update(rng.random((len(records), classes), dtype=np.float32), labels)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # KiB on Linux
    assert metrics.compute().keys() == {"gap", "map", "hit_at_1", "perr"}
    assert reader.read == 20_000
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peaks[1000 // batch - 1]) * 1024 < 300e6
