"""TFRecord files and SequenceExamples written byte by byte, sharing no code with the package or with protobuf."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from reprune.youtube8m.records import Record

FEATURES = {"rgb": 5, "audio": 3}


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) % 2**32)


def framed(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + masked(length) + payload + masked(payload)


def varint(number: int) -> bytes:
    number %= 2**64
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def entry(key: str, value: bytes) -> bytes:
    """One entry of a map that is field 1 of its message."""
    return field(1, field(1, key.encode()) + field(2, value))


def bytes_feature(*values: bytes) -> bytes:
    return field(1, b"".join(field(1, value) for value in values))


def int64_feature(values: Sequence[int], packed: bool = True) -> bytes:
    if packed:
        return field(3, field(1, b"".join(map(varint, values))))
    return field(3, b"".join(b"\x08" + varint(value) for value in values))


def feature_list(features: Sequence[bytes]) -> bytes:
    return b"".join(field(1, feature) for feature in features)


def example(context: Mapping[str, bytes], lists: Mapping[str, bytes]) -> bytes:
    return field(1, b"".join(entry(*item) for item in context.items())) + field(
        2, b"".join(entry(*item) for item in lists.items())
    )


def serialised(record: Record, features: Mapping[str, int] = FEATURES) -> bytes:
    lists, start = {}, 0
    for name, size in features.items():
        rows = record.frames[:, start : start + size]
        lists[name] = feature_list([bytes_feature(row.tobytes()) for row in rows])
        start += size
    return example({"id": bytes_feature(record.id.encode()), "labels": int64_feature(record.labels.tolist())}, lists)


def write_reference(path: Path, payloads: Sequence[bytes]) -> Path:
    path.write_bytes(b"".join(map(framed, payloads)))
    return path


def random_records(
    number: int, seed: int = 0, features: Mapping[str, int] = FEATURES, classes: int = 16, longest: int = 6
) -> list[Record]:
    rng = np.random.default_rng(seed)
    return [
        Record(
            f"v{seed}-{index}",
            np.sort(rng.choice(classes, rng.integers(0, 4), replace=False)),
            rng.integers(0, 256, (rng.integers(1, longest + 1), sum(features.values())), dtype=np.uint8),
        )
        for index in range(number)
    ]


def same(left: Record, right: Record) -> bool:
    return (
        left.id == right.id
        and left.labels.tolist() == right.labels.tolist()
        and left.frames.dtype == right.frames.dtype == np.uint8
        and left.frames.shape == right.frames.shape
        and bool((left.frames == right.frames).all())
    )


def assert_same(left: Sequence[Record], right: Sequence[Record]) -> None:
    assert [record.id for record in left] == [record.id for record in right]
    assert all(map(same, left, right))
