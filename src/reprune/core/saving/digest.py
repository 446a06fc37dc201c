"""Digests that tell whether weights, or a file, are the ones they were: CRC-32C, as fast as memory is read.

They find accidents (another checkpoint, a flipped bit, a file cut short), not forgery.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reprune.core.errors import RepruneError
from reprune.core.extras import lacking

_KIND = "crc32c"


def digest_of_arrays(arrays: Iterable[NDArray[np.generic]]) -> str:
    """The digest of weights, in their order: of shapes and values, whatever the types that hold the values.

    A model moved to another device, or from float32 to float64 and back, keeps it; rounding to fewer bits does not.

    Args:
        arrays: The weights, one at a time.

    Example:
        >>> import numpy as np
        >>> one = np.linspace(0, 1, 3, dtype="float32")
        >>> digest_of_arrays([one]) == digest_of_arrays([one.astype("float64")])
        True
    """
    state = 0
    for array in arrays:
        state = _extended(state, np.frombuffer(repr(array.shape).encode(), np.uint8))
        state = _extended(state, _narrowed(np.ascontiguousarray(array)))
    return _text(state)


def digest_of_bytes(content: bytes) -> str:
    """The digest of a piece of a file."""
    return _text(_extended(0, np.frombuffer(content, np.uint8)))


def digest_of_file(path: Path) -> str:
    """The digest of a file's content.

    Raises:
        OSError: When the file cannot be read.
    """
    # Mapped, not read: a copy of large weights would take longer than their digest.
    return _text(_extended(0, np.memmap(path, np.uint8, "r"))) if path.stat().st_size else _text(0)


def _narrowed(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """The same values in the one type that stands for all that can hold them: float32, else float64; or int64."""
    if array.dtype.kind in "biu":
        return array.astype("<i8")
    array = array.view(array.real.dtype)  # A complex number is two real ones.
    if array.dtype.itemsize <= 4:
        return array.astype("<f4", copy=False)
    with np.errstate(over="ignore"):
        narrow = array.astype("<f4")
    return narrow if np.array_equal(narrow, array) else array.astype("<f8", copy=False)


def _extended(state: int, array: NDArray[np.generic]) -> int:
    try:
        import google_crc32c
    except ModuleNotFoundError:
        raise RepruneError(lacking("google_crc32c", "Saving a model")) from None
    return int(google_crc32c.extend(state, array))


def _text(state: int) -> str:
    return f"{_KIND}:{state:08x}"
