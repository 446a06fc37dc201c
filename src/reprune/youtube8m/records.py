"""Read and write YouTube-8M frame-level records, without TensorFlow.

Example:
    >>> reader = read_records("yt8m/train*.tfrecord", classes=3862, on_error="skip")
    >>> for record in reader:
    ...     print(record.id, record.labels, record.frames.shape)
    >>> print(reader.skipped, "damaged records")
"""

from __future__ import annotations

import glob
import gzip
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, cast

from reprune.core.errors import RecordError
from reprune.youtube8m.example import DEFAULT_FEATURES, ContentError, Record, parse_example, serialise_example
from reprune.youtube8m.framing import Fault, FrameFile, write_frame

__all__ = [
    "DEFAULT_FEATURES",
    "Record",
    "RecordReader",
    "RecordWriter",
    "count_records",
    "find_files",
    "read_records",
    "write_records",
]

StrPath = str | os.PathLike[str]
OnError = Literal["raise", "skip"]

_KEPT_MESSAGES = 100
_log = logging.getLogger(__name__)


def read_records(
    paths: StrPath | Sequence[StrPath],
    features: Mapping[str, int] = DEFAULT_FEATURES,
    on_error: OnError = "raise",
    classes: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> RecordReader:
    """Read the records of TFRecord files, plain or GZIP, one at a time.

    Args:
        paths: A path or glob, or a list of them. Files are read in this order, each glob's sorted, none twice.
        features: The feature lists to read and their bytes per frame; they stand side by side in `frames`.
        on_error: "raise" stops at the first damaged record; "skip" leaves it out, counts it and goes on.
        classes: How many classes there are; a label outside is an error. None accepts any label from 0 on.
        part: `(i, n)` reads records i, i + n, i + 2n … of every file; the others are stepped over unread.

    Returns:
        An iterator over records that counts what it read and skipped.

    Raises:
        RecordError: At once if a path matches no file; while iterating if a record is damaged or does not fit
            `features` and `classes`, naming file, record and byte offset.
        ValueError: An argument makes no sense.

    Example:
        >>> first = next(read_records("digits/*.tfrecord", features={"audio": 128}))
        >>> first.frames.shape, first.frames.dtype
        ((46, 128), dtype('uint8'))
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
    if not 0 <= part[0] < part[1]:
        raise ValueError(f"part must be (i, n) with 0 ≤ i < n, not {part}")
    if classes is not None and classes < 1:
        raise ValueError(f"classes must be at least 1, not {classes}")
    return RecordReader([(path, part) for path in find_files(paths)], _checked(features), on_error, classes)


class RecordReader(Iterator[Record]):
    """The records of some files, in order. `read_records` makes one; so does a worker that has its own share of files.

    Args:
        files: What to read: (file, (i, n)) pairs, where (i, n) stands for the records i, i + n, i + 2n … of the file.
        features: Feature lists and their bytes per frame.
        on_error: "raise" or "skip".
        classes: How many classes there are, or None.

    Attributes:
        read: How many records came out so far.
        skipped: How many damaged places were left out so far (always 0 with on_error="raise").
        errors: Messages of the first 100 of those.
    """

    def __init__(
        self,
        files: Sequence[tuple[Path, tuple[int, int]]],
        features: Mapping[str, int] = DEFAULT_FEATURES,
        on_error: OnError = "raise",
        classes: int | None = None,
    ) -> None:
        self.read = 0
        self.skipped = 0
        self.errors: list[str] = []
        self._features = features
        self._on_error = on_error
        self._classes = classes
        self._records = self._iterate(files)

    def __next__(self) -> Record:
        return next(self._records)

    def _iterate(self, files: Sequence[tuple[Path, tuple[int, int]]]) -> Iterator[Record]:
        for path, (start, step) in files:
            with FrameFile(path) as file:
                for item in file.frames(_every(start, step)):
                    try:
                        if isinstance(item, Fault):
                            raise ContentError(f"{item.what}; {_advice(item)}")
                        record = parse_example(item.payload, self._features, self._classes)
                    except ContentError as error:
                        self._handle(f"{path}: record {item.index} at byte {item.offset}: {error}", error)
                        continue
                    self.read += 1
                    yield record
        if self.skipped:
            _log.warning("skipped %d damaged records, kept %d; the first: %s", self.skipped, self.read, self.errors[0])

    def _handle(self, message: str, cause: ContentError) -> None:
        if self._on_error == "raise":
            raise RecordError(message) from cause
        self.skipped += 1
        if len(self.errors) < _KEPT_MESSAGES:
            self.errors.append(message)


def count_records(paths: StrPath | Sequence[StrPath]) -> int:
    """Count the records of files by walking over their headers: no payload of a plain file is read.

    Damaged places count as one record each.

    Raises:
        RecordError: A path matches no file.
    """
    total = 0
    for path in find_files(paths):
        with FrameFile(path) as file:
            for _ in file.frames(lambda _: False):
                pass
            total += file.count
    return total


def find_files(paths: StrPath | Sequence[StrPath]) -> list[Path]:
    """Return the files that paths and globs name: in the order given, each glob's sorted, none twice.

    Raises:
        RecordError: A path or glob matches no file.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise RecordError("no record files: the list of paths is empty")
    found: dict[Path, None] = {}
    for pattern in (os.path.expanduser(os.fspath(path)) for path in given):  # noqa: PTH111 (a glob is no path)
        literal = Path(pattern)
        if literal.is_dir():
            raise RecordError(f"{pattern} is a folder; name its files with a glob, such as {literal / '*.tfrecord'}")
        matches = [literal] if literal.is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207
        files = [path for path in matches if path.is_file()]
        if not files:
            raise RecordError(f"no file matches {pattern!r} (searched from {Path.cwd()}); correct the path or glob")
        found.update(dict.fromkeys(files))
    return list(found)


class RecordWriter:
    """Write records to a TFRecord file, which appears under its name only when all of it is written.

    Args:
        path: The file to write; one that is there already is replaced at the end.
        features: The feature lists that the columns of `frames` belong to, in order, and their bytes per frame.
        compression: None, or "GZIP".

    Raises:
        ValueError: An argument makes no sense.

    Example:
        >>> with RecordWriter("a.tfrecord", features={"audio": 128}) as writer:
        ...     writer.write(Record("v0", np.array([3]), np.zeros((46, 128), np.uint8)))
    """

    def __init__(
        self,
        path: StrPath,
        features: Mapping[str, int] = DEFAULT_FEATURES,
        compression: Literal["GZIP"] | None = None,
    ) -> None:
        if compression not in (None, "GZIP"):
            raise ValueError(f"compression must be None or 'GZIP', not {compression!r}")
        self.path = Path(path)
        self.written = 0
        """How many records were written so far."""
        self._features = _checked(features)
        self._compress = compression == "GZIP"

    def __enter__(self) -> RecordWriter:
        # In the same folder, because only a rename within one file system is atomic.
        self._raw = tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=f".{self.path.name}.", delete=False)
        # No time stamp and no name in the GZIP header: equal records give equal files.
        self._file = cast(
            "BinaryIO",
            gzip.GzipFile(filename="", fileobj=self._raw, mode="wb", mtime=0) if self._compress else self._raw,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        temporary = Path(self._raw.name)
        try:
            self._file.close()
            self._raw.close()
            if kind is None:
                # A temporary file is private to its owner; give the result what any new file would get.
                umask = os.umask(0)
                os.umask(umask)
                temporary.chmod(0o666 & ~umask)
                temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def write(self, record: Record) -> None:
        """Append one record.

        Raises:
            RecordError: Its arrays are not what a reader with the same features would give back.
        """
        try:
            payload = serialise_example(record, self._features)
        except ContentError as error:
            raise RecordError(f"{self.path}: record {self.written} ({record.id}): {error}") from error
        write_frame(self._file, payload)
        self.written += 1


def write_records(
    path: StrPath,
    records: Iterable[Record],
    features: Mapping[str, int] = DEFAULT_FEATURES,
    compression: Literal["GZIP"] | None = None,
) -> int:
    """Write records to one TFRecord file and return how many there were. See `RecordWriter`.

    Example:
        >>> write_records("few.tfrecord", itertools.islice(read_records("train*.tfrecord"), 100))
        100
    """
    with RecordWriter(path, features, compression) as writer:
        for record in records:
            writer.write(record)
    return writer.written


def _every(start: int, step: int) -> Callable[[int], bool]:
    return lambda index: index % step == start


def _checked(features: Mapping[str, int]) -> dict[str, int]:
    if not features or any(not isinstance(size, int) or size < 1 for size in features.values()):
        raise ValueError(
            f"features must map names to bytes per frame, such as {dict(DEFAULT_FEATURES)}, not {features!r}"
        )
    return dict(features)


def _advice(fault: Fault) -> str:
    if fault.offset == 0:
        return (
            "is it a TFRecord file, with a length and checksums around each record? If it is, fetch it again, or pass "
            "on_error='skip'"
        )
    return "fetch the file again, or pass on_error='skip'"
