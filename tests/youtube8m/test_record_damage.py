"""Damage anywhere in a file: what is whole comes back, what is not is never passed off as a record."""

from __future__ import annotations

import gzip
import os
from contextlib import nullcontext

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reprune.core.errors import RecordError
from reprune.youtube8m.framing import Frame, FrameFile
from reprune.youtube8m.records import Record, read_records
from tests.youtube8m import tfrecord_reference as reference
from tests.youtube8m.tfrecord_reference import FEATURES, assert_same, random_records, same

RECORDS = random_records(6, longest=3)
FRAMED = [reference.framed(reference.serialised(record)) for record in RECORDS]
DATA = b"".join(FRAMED)
ZIPPED = gzip.compress(DATA, mtime=0)
STARTS = [sum(map(len, FRAMED[:index])) for index in range(len(FRAMED))]
SPANS = [(start, start + len(framed)) for start, framed in zip(STARTS, FRAMED, strict=True)]
PLACES = st.integers(0, len(DATA))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("damage") / "file.tfrecord"


def skim(path, data: bytes) -> tuple[list[Record], int]:
    """Read damaged bytes with on_error="skip", after checking the other ways to read against it."""
    path.write_bytes(data)
    reader = read_records(path, FEATURES, classes=16, on_error="skip")
    records = list(reader)
    assert len(reader.errors) == reader.skipped
    assert all(error.startswith(f"{path}: record ") and " at byte " in error for error in reader.errors)

    whole: list[Record] = []
    strict = read_records(path, FEATURES, classes=16)
    with pytest.raises(RecordError) if reader.skipped else nullcontext() as caught:
        whole.extend(strict)
    if caught is not None:
        assert str(caught.value) == reader.errors[0]
    assert_same(whole, records[: len(whole)])

    parts = [read_records(path, FEATURES, on_error="skip", classes=16, part=(part, 3)) for part in range(3)]
    shared_out = [list(part) for part in parts]
    assert sorted(record.id for part in shared_out for record in part) == sorted(record.id for record in records)
    assert sum(part.skipped for part in parts) == reader.skipped
    return records, reader.skipped


def assert_among_the_originals(records: list[Record]) -> None:
    """Each is an original, and their order is kept."""
    originals = iter(RECORDS)
    assert all(any(same(record, original) for original in originals) for record in records)


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, len(DATA) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_costs_its_own_record_only(path, place, bit):
    data = bytearray(DATA)
    data[place] ^= 1 << bit
    records, skipped = skim(path, bytes(data))
    hit = next(index for index, (start, end) in enumerate(SPANS) if start <= place < end)
    assert_same(records, RECORDS[:hit] + RECORDS[hit + 1 :])
    assert skipped == 1


@settings(max_examples=100, deadline=None)
@given(place=PLACES)
def test_a_truncated_file_keeps_what_stands_before(path, place):
    records, skipped = skim(path, DATA[:place])
    assert_same(records, [record for record, (_, end) in zip(RECORDS, SPANS, strict=True) if end <= place])
    assert skipped == (place not in [0, *(end for _, end in SPANS)])


@settings(max_examples=200, deadline=None)
@given(first=PLACES, last=PLACES, put=st.binary(max_size=40))
@example(first=107, last=323, put=bytes(10))
@example(first=0, last=3, put=b"\x1f\x8b\x08")  # GZIP's magic number.
def test_a_cut_or_a_patch_keeps_what_it_does_not_touch(path, first, last, put):
    first, last = sorted((first, last))
    data = DATA[:first] + put + DATA[last:]
    records, _ = skim(path, data)
    assert_among_the_originals(records)
    untouched = {
        record.id for record, (start, end) in zip(RECORDS, SPANS, strict=True) if end <= first or start >= last
    }
    # A record whose own header is whole is stepped over by its length: where that happens to lead from a cut to the
    # header of a later record, what stands between is taken for its damaged data. Others may not even read these.
    moved = {start - last + first + len(put): index for index, start in enumerate(STARTS) if start >= last}
    for start, end in SPANS:
        if start + 12 <= first < end and end in moved:
            untouched -= {RECORDS[index].id for place, index in moved.items() if place < end}
    assert untouched <= {record.id for record in records}


@settings(max_examples=100, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(1, 255)), max_size=4))
def test_damage_in_several_places(path, flips):
    data = bytearray(DATA)
    for place, change in flips:
        data[place] ^= change
    records, _ = skim(path, bytes(data))
    whole = [r for r, (start, end) in zip(RECORDS, SPANS, strict=True) if data[start:end] == DATA[start:end]]
    assert_same(records, whole)


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, len(ZIPPED) - 1), change=st.integers(0, 255), cut=st.booleans())
def test_damaged_gzip_gives_originals_or_an_error(path, place, change, cut):
    damaged = ZIPPED[:place] if cut else ZIPPED[:place] + bytes([ZIPPED[place] ^ change]) + ZIPPED[place + 1 :]
    records, skipped = skim(path, damaged)
    assert_among_the_originals(records)
    if damaged == ZIPPED:
        assert len(records) == len(RECORDS)
    if cut:
        assert_same(records, RECORDS[: len(records)])
        assert skipped == (place > 0)


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, len(DATA) - 1))
def test_damage_inside_intact_gzip_costs_its_own_record_only(path, place):
    data = DATA[:place] + bytes([DATA[place] ^ 0x10]) + DATA[place + 1 :]
    records, skipped = skim(path, gzip.compress(data, compresslevel=1))
    assert len(records) == len(RECORDS) - 1
    assert_among_the_originals(records)
    assert skipped == 1


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_other_file_gives_an_error(path, data):
    records, skipped = skim(path, data)
    assert not records
    assert bool(skipped) == bool(data)


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        (lambda start, end: DATA[: start + 5], r"truncated in the length header \(5 of 12 bytes\)"),
        (lambda start, end: DATA[: start + 20], r"truncated in the data \(8 of \d+ bytes\)"),
        (lambda start, end: DATA[: end - 1], r"truncated in the checksum of the data \(3 of 4 bytes\)"),
        (lambda start, end: DATA[: end - 4], r"truncated in the checksum of the data \(0 of 4 bytes\)"),
        (lambda start, end: _flip(start), "checksum of the length"),
        (lambda start, end: _flip(start + 11), "checksum of the length"),
        (lambda start, end: _flip(start + 12), "checksum of the data"),
        (lambda start, end: _flip(end - 1), "checksum of the data"),
        (lambda start, end: DATA[:start] + _claim(1 << 32), "record of 4294967296 bytes is more than protobuf allows"),
        (lambda start, end: DATA[:start] + _claim(1 << 31), "record of 2147483648 bytes is more than protobuf allows"),
        (lambda start, end: DATA[:start] + _claim(1000), r"truncated in the data \(0 of 1000 bytes\)"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_the_message_says_what_where_and_what_to_do(path, where, complaint, zipped):
    start, end = SPANS[1]
    data = where(start, end)
    path.write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(RecordError, match=complaint) as caught:
        list(read_records(path, FEATURES))
    assert str(caught.value).startswith(f"{path}: record 1 at byte {start}: ")
    assert "; fetch the file again, or pass on_error='skip'" in str(caught.value)


def test_the_longest_record_that_protobuf_allows(path, monkeypatch):
    path.write_bytes(_claim((1 << 31) - 1))
    read, sizes = FrameFile._read, []
    monkeypatch.setattr(FrameFile, "_read", lambda file, place, size: sizes.append(size) or read(file, place, size))
    with pytest.raises(RecordError, match=r"0 at byte 0: .*data \(0 of 2147483647 bytes\); is it a TFRecord file"):
        list(read_records(path, FEATURES))
    assert max(sizes) <= 1 << 20  # A file may claim anything: memory is for what it has.


def test_a_byte_before_a_plain_file_does_not_make_it_gzip(path):
    """Even where the length after it goes on as GZIP's magic number does."""
    payload = bytes(0x088B)
    path.write_bytes(b"\x1f" + reference.framed(payload))
    with FrameFile(path) as file:
        fault, frame = file.frames()
    assert (fault.index, fault.offset, fault.what) == (0, 0, "the checksum of the length does not match")
    assert frame == Frame(1, 1, payload)


@pytest.mark.parametrize("zipped", [False, True])
def test_frames_have_their_places(path, zipped):
    """Of those that are wanted; each record counts, and the file is closed."""
    path.write_bytes(ZIPPED if zipped else DATA)
    free = os.open(path, os.O_RDONLY)
    os.close(free)
    payloads = [framed[12:-4] for framed in FRAMED]
    whole = [Frame(index, start, payload) for index, (start, payload) in enumerate(zip(STARTS, payloads, strict=True))]
    for wanted in ([0, 1, 2, 3, 4, 5], [1, 4], []):
        with FrameFile(path) as file:
            assert list(file.frames(wanted.__contains__)) == [whole[index] for index in wanted]
            assert file.count == 6
    with FrameFile(path) as file:
        assert list(file.frames()) == whole
    again = os.open(path, os.O_RDONLY)
    os.close(again)
    assert again == free


def test_truncated_gzip_says_so(path):
    path.write_bytes(ZIPPED[:-100])
    with pytest.raises(RecordError, match=r"the GZIP stream is damaged or truncated"):
        list(read_records(path, FEATURES))
    # Also where zeros follow, which stand on top of every length: they are no whole header of a plain file.
    path.write_bytes(ZIPPED[:3] + bytes(40))
    with pytest.raises(RecordError, match=r"record 0 at byte 0: the GZIP stream is damaged or truncated"):
        list(read_records(path, FEATURES))


def test_gzip_that_ends_anywhere_in_a_record_says_so(path):
    stored = gzip.compress(DATA, compresslevel=0)
    start, end = SPANS[1]
    first = stored.index(DATA[:20])
    for place in range(start, end):
        path.write_bytes(stored[: first + place])
        reader = read_records(path, FEATURES)
        assert same(next(reader), RECORDS[0])
        with pytest.raises(RecordError, match=f"record 1 at byte {start}: the GZIP stream is damaged or truncated"):
            next(reader)


def test_the_search_crosses_its_own_chunks(path, monkeypatch):
    monkeypatch.setattr("reprune.youtube8m.framing._SCAN_BYTES", 16)
    for place in range(SPANS[2][0] + 1):
        data = DATA[: SPANS[1][0]] + b"\1" * place + DATA[SPANS[2][0] :]
        records, skipped = skim(path, data)
        assert_same(records, RECORDS[:1] + RECORDS[2:])
        assert skipped == (place > 0)


def _claim(length: int) -> bytes:
    """The header of a record of so many bytes."""
    packed = length.to_bytes(8, "little")
    return packed + reference.masked(packed)


def _flip(place: int, data: bytes = DATA) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_cut_record_that_holds_a_whole_one(path, zipped):
    data = FRAMED[1] + reference.framed(b"before" + FRAMED[0])[:-4]
    records, skipped = skim(path, gzip.compress(data) if zipped else data)
    assert_same(records, [RECORDS[1], RECORDS[0]])
    assert skipped == 1


def test_a_header_that_nothing_confirms_is_no_record(path):
    """Its record is cut, and no header follows: another damaged record would be counted."""
    around = _flip(0, reference.framed(b"before" + FRAMED[0][:20]))
    records, skipped = skim(path, FRAMED[1] + around + FRAMED[2])
    assert_same(records, RECORDS[1:3])
    assert skipped == 1


def test_a_header_of_more_than_protobuf_allows_is_stepped_over(path):
    """It is no record where one is looked for."""
    damaged = _flip(0, _flip(13, FRAMED[0])) + _claim(1 << 31)
    records, skipped = skim(path, damaged + FRAMED[1] + FRAMED[2])
    assert_same(records, RECORDS[1:3])
    assert skipped == 1


def test_damaged_data_after_a_damaged_header_is_a_record_of_its_own(path):
    damaged = _flip(0, _flip(13, FRAMED[1])) + _flip(13, FRAMED[2])
    records, skipped = skim(path, FRAMED[0] + damaged + FRAMED[3])
    assert_same(records, [RECORDS[0], RECORDS[3]])
    assert skipped == 2
