"""TFRecord framing: records of any bytes, each behind a length and two checksums.

A record is `length` (uint64, little-endian), the masked CRC-32C of those 8 bytes (uint32), `length` bytes of payload
and the masked CRC-32C of the payload (uint32). A file is records back to back, plain or as one GZIP stream.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import google_crc32c
import numpy as np

_HEADER = struct.Struct("<QI")
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_OVERHEAD = _HEADER.size + _CRC.size
_MASK_DELTA = 0xA282EAD8
_GZIP_MAGIC = b"\x1f\x8b\x08"
_MAX_LENGTH = 2**31 - 1  # protobuf's own limit for one message
_SCAN_BYTES = 1 << 20
_GZIP_FAULTS = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True)
class Frame:
    """One undamaged payload: its index in the file, the byte offset of its header, and the bytes."""

    index: int
    offset: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """A place where the framing is damaged: index of the record, byte offset of its header, and what is wrong."""

    index: int
    offset: int
    what: str


@dataclass(frozen=True, slots=True)
class _Damage:
    what: str


def masked_crc(data: bytes) -> int:
    """Return the masked CRC-32C of `data` as TFRecord files store it."""
    crc = google_crc32c.value(data)
    return int(((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def write_frame(file: BinaryIO, payload: bytes) -> None:
    """Append one record to an open binary file."""
    length = _LENGTH.pack(len(payload))
    file.write(length + _CRC.pack(masked_crc(length)))
    file.write(payload)
    file.write(_CRC.pack(masked_crc(payload)))


class FrameFile:
    """An open TFRecord file that is read front to back.

    GZIP is recognised by content. Offsets in a GZIP file count decompressed bytes.

    Example:
        >>> with FrameFile(Path("train0000.tfrecord")) as file:
        ...     for item in file.frames():
        ...         print(item.index, item.offset)
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._size: int | None = path.stat().st_size
        self.count = 0
        """Records and faults passed so far; after `frames()` has ended, how many the file holds."""
        if self._is_gzip():
            self._file.seek(0)
            self._file = cast("BinaryIO", gzip.GzipFile(fileobj=self._file))  # type: ignore[assignment]
            self._size = None

    def _is_gzip(self) -> bool:
        """Whether the file is one GZIP stream: its magic number is a possible length of a plain file's first record."""
        start = self._file.read(_HEADER.size)
        if not start.startswith(_GZIP_MAGIC) or _sound_header(start):
            return False
        self._file.seek(0)
        try:
            gzip.GzipFile(fileobj=self._file).read(1)
            return True
        except _GZIP_FAULTS:
            # One or the other, damaged at its start: where whole headers of records follow, these can be read.
            return next(self._candidates(1), None) is None

    def __enter__(self) -> FrameFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        inner = getattr(self._file, "fileobj", None)
        self._file.close()
        if inner is not None:
            inner.close()

    def frames(self, wanted: Callable[[int], bool] = lambda _: True) -> Iterator[Frame | Fault]:
        """Yield the records (and faults) whose index is wanted; the others are stepped over without reading them.

        After a fault it goes on with the next record that can be found. Which index a record gets does not depend on
        `wanted`, so that several readers can share a file, damaged or not.
        """
        position = 0
        length = self._length_at(position)
        while length is not None:
            index, mine = self.count, wanted(self.count)
            payload: bytes | _Damage | None = None
            following: int | _Damage | None = length
            if isinstance(length, _Damage):
                payload = length
            else:
                if mine:
                    payload = self._payload_at(position, length)
                following = self._length_at(position + _OVERHEAD + length)
                if payload is None and isinstance(following, _Damage):
                    # Damage may begin in the record that was stepped over: whoever reads the file must see it alike.
                    payload = self._payload_at(position, length)
            self.count += 1
            if mine:
                yield (
                    Fault(index, position, payload.what)
                    if isinstance(payload, _Damage)
                    else Frame(index, position, cast("bytes", payload))
                )
            if isinstance(payload, _Damage) and isinstance(following, _Damage):
                position, length = self._resynchronise(position)
            else:
                position, length = position + _OVERHEAD + cast("int", length), following

    def _read(self, position: int, size: int) -> bytes | _Damage:
        try:
            if self._file.tell() != position:
                self._file.seek(position)
            if self._file.tell() < position:  # a GZIP stream that ends earlier
                return _Damage("the file is truncated")
            return self._file.read(size)
        except _GZIP_FAULTS as error:
            return _Damage(f"the GZIP stream is damaged or truncated ({error})")

    def _length_at(self, position: int) -> int | _Damage | None:
        """Return the length in the header at `position`, or the damage, or None at the end of the file."""
        if self._size is not None and position > self._size:
            return _Damage("the file is truncated")
        header = self._read(position, _HEADER.size)
        if isinstance(header, _Damage):
            return header
        if not header:
            return None
        if len(header) < _HEADER.size:
            return _Damage(f"the file is truncated in the length header ({len(header)} of {_HEADER.size} bytes)")
        if not _sound_header(header):
            return _Damage("the checksum of the length does not match")
        (length, _) = _HEADER.unpack(header)
        if length > _MAX_LENGTH:
            return _Damage(f"a record of {length} bytes is more than protobuf allows")
        return int(length)

    def _payload_at(self, position: int, length: int) -> bytes | _Damage:
        """Return the payload of the record whose header is at `position`, checked."""
        start = position + _HEADER.size
        if self._size is not None and start + length > self._size:
            return _Damage(f"the file is truncated in the data ({self._size - start} of {length} bytes)")
        payload = self._read(start, length)
        if isinstance(payload, _Damage):
            return payload
        if len(payload) < length:
            return _Damage(f"the file is truncated in the data ({len(payload)} of {length} bytes)")
        crc = self._read(start + length, _CRC.size)
        if isinstance(crc, _Damage):
            return crc
        if len(crc) < _CRC.size:
            return _Damage(f"the file is truncated in the checksum of the data ({len(crc)} of {_CRC.size} bytes)")
        if _CRC.unpack(crc)[0] != masked_crc(payload):
            return _Damage("the checksum of the data does not match")
        return payload

    def _resynchronise(self, position: int) -> tuple[int, int | _Damage | None]:
        """Find where to go on after the damaged record at `position`: an offset and what its header says."""
        header = self._read(position, _HEADER.size)
        if isinstance(header, bytes) and len(header) == _HEADER.size:
            (length, _) = _HEADER.unpack(header)
            if length <= _MAX_LENGTH and isinstance(self._payload_at(position, length), bytes):
                # Only the header's checksum is hurt: the length is confirmed by the data's.
                return position + _OVERHEAD + length, self._length_at(position + _OVERHEAD + length)
        for candidate in self._candidates(position + 1):
            found = self._length_at(candidate)
            if not isinstance(found, int):
                continue
            after = self._length_at(candidate + _OVERHEAD + found)
            if not isinstance(after, _Damage) or isinstance(self._payload_at(candidate, found), bytes):
                return candidate, found
        return position, None

    def _candidates(self, position: int) -> Iterator[int]:
        """Yield the offsets from `position` on where a length below 2³² could stand: four zero bytes on top."""
        while isinstance(chunk := self._read(position, _SCAN_BYTES), bytes) and len(chunk) >= _HEADER.size:
            zero = np.frombuffer(chunk, np.uint8) == 0
            top = zero[4:-7] & zero[5:-6] & zero[6:-5] & zero[7:-4]
            for offset in np.flatnonzero(top):
                if _sound_header(chunk[offset : offset + _HEADER.size]):
                    yield position + int(offset)
            position += len(chunk) - _HEADER.size + 1


def _sound_header(header: bytes) -> bool:
    return len(header) == _HEADER.size and _HEADER.unpack(header)[1] == masked_crc(header[: _LENGTH.size])
