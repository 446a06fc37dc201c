"""Files that are there whole or not at all, and folders that one process at a time writes to."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reprune.core.errors import SaveError

_held = threading.local()
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place once it is on disk.

    The old file stays when writing fails, and when the machine stops at any moment. The new one has the mode that the
    umask gives, whatever wrote it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        with writing(part):
            yield part
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, something writes a file of this name; afterwards it is on disk, with the mode that the umask gives."""
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode & 0o7777
    yield
    with path.open("rb") as file:
        os.fsync(file.fileno())
    if path.stat().st_mode & 0o7777 != mode:
        path.chmod(mode)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder outlast a power cut, where the system can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # Not on every file system.
        pass
    finally:
        os.close(descriptor)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep every other process, and every other thread that asks, from writing to a folder that exists.

    The lock is on the folder itself: it leaves no file behind, and goes with the process that holds it. Whoever has it
    already may ask again.

    Raises:
        SaveError: When another one is writing there.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    status = os.fstat(descriptor)
    mine, own = _held.__dict__.setdefault("folders", set()), (status.st_dev, status.st_ino)
    try:
        if own in mine:
            yield
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SaveError(
                f"{folder}: another process is writing there now. Give another folder, or wait until it is done."
            ) from None
        except OSError:  # Some network file systems lock no folders.
            pass
        mine.add(own)
        try:
            yield
        finally:
            mine.discard(own)
    finally:
        os.close(descriptor)


def reason(error: OSError) -> str:
    """Why the system refused to write, and what helps."""
    helps = "make room there, or give another place" if error.errno in _NO_ROOM else "give a place that can be"
    return f"{error.strerror or error}: {helps}"
